"""The command `report`: write one page with everything that a run has made so far."""

import argparse
import logging
from pathlib import Path
from typing import Any

from booth.commands.options import path
from booth.report import write
from booth.train.run_folder import locked
from booth.train.run_record import read_record

log = logging.getLogger("booth")


def add_parser(commands: Any, package: str) -> None:
    parser = commands.add_parser("report", help="write RUN/report.html, a page with all that a run has made so far")
    named = parser.add_mutually_exclusive_group(required=True)
    named.add_argument("run_dir", metavar="RUN", nargs="?", type=path, help="the run folder, of either backend")
    named.add_argument("--run", dest="named_run", metavar="RUN", type=path, help="the same, as other commands have it")
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Write the page into the run folder. Raise UserError if the folder is not a run."""
    folder = Path(options.run_dir or options.named_run)
    read_record(folder)  # raises UserError for a folder that is not a run: not even a lock is written there
    with locked(folder):
        log.info("written: %s", write.write(folder))
