"""Training with all that goes around it: the report, and a push of the finished run."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from booth.diffusion.backend import load_backend
from booth.report import write
from booth.train import loop

log = logging.getLogger("booth")


def train(
    package: str,
    config: Any,
    workdir: str | Path,
    from_step: int | None = None,
    meant: Collection[str] | None = None,
    publisher: loop.Publisher | None = None,
) -> loop.Run:
    """Run or resume the whole job in `workdir` with `jaxbooth` or `torchbooth`, as `booth.train.loop.train` does.

    The page of the run is kept up to date on the way.
    """
    run = loop.train(
        load_backend(package), config, workdir, from_step, meant, publisher=publisher, refresh=write.refresh
    )
    if (run.path / write.PAGE).is_file():
        log.info("to look at: %s", run.path / write.PAGE)
    return run
