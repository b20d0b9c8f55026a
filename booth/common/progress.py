"""The progress bar: redrawn continuously on a terminal, and every two seconds in a log file, which keeps each line."""

import logging
import os
import sys
from typing import Any

from tqdm import tqdm


def progress(*arguments: Any, **options: Any) -> Any:
    """Return a tqdm bar with that interval, unless TQDM_MININTERVAL sets another. Where the log is quiet, so is the
    bar."""
    if not sys.stderr.isatty() and "TQDM_MININTERVAL" not in os.environ:
        options.setdefault("mininterval", 2.0)
    if logging.getLogger("booth").level > logging.INFO:
        options["disable"] = True
    return tqdm(*arguments, **options)
