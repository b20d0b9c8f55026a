"""RUN/report.html: one page that shows what a run has made so far.

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
    """Write the page of the run in a folder; the run need not be finished. Raise UserError if the folder is no run
    folder or is damaged."""
    write_text(run / PAGE, page(gather(run)))
    return run / PAGE


def refresh(run: Path) -> None:
    """Write the page while training. Any error is only a warning, since it must not end the training."""
    try:
        write(run)
    except Exception as error:
        log.warning("%s is not up to date (%s: %s); the run continues", run / PAGE, type(error).__name__, error)
