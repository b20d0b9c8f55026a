"""The progress bar: redrawn all the time on a terminal, every two seconds where a log file keeps each drawing."""

import os
import sys
from typing import Any

from tqdm import tqdm


def progress(*arguments: Any, **options: Any) -> Any:
    """tqdm, as above; TQDM_MININTERVAL says otherwise."""
    if not sys.stderr.isatty() and "TQDM_MININTERVAL" not in os.environ:
        options.setdefault("mininterval", 2.0)
    return tqdm(*arguments, **options)
