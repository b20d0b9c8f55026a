"""Training together with what accompanies it: the report, and the push of the finished run."""

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
    """Run or resume the whole job in `workdir` with `jaxbooth` or `torchbooth`, and keep the run's page up to date.

    Arguments and errors are those of `booth.train.loop.train`.
    """
    run = loop.train(
        load_backend(package), config, workdir, from_step, meant, publisher=publisher, refresh=write.refresh
    )
    if (run.path / write.PAGE).is_file():
        log.info("the page of the run: %s", run.path / write.PAGE)
    return run
