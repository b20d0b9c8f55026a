"""RUN/report.html: what a run has made so far, on one page to look at.

It is written at each checkpoint and preview and at the end, and by the command `report`.
"""

import logging
from pathlib import Path

from booth.common.files import write_text
from booth.report.data import gather
from booth.report.page import page

log = logging.getLogger("booth")

PAGE = "report.html"


def write(run: Path) -> Path:
    """Write the page of the run in a folder, which need not be finished. Raise UserError if it is none, or is
    damaged."""
    write_text(run / PAGE, page(gather(run)))
    return run / PAGE


def refresh(run: Path) -> None:
    """The same while training, which no page is worth ending: whatever goes wrong is a warning."""
    try:
        write(run)
    except Exception as error:
        log.warning("%s is not up to date (%s: %s); the run goes on", run / PAGE, type(error).__name__, error)
