"""Train with JAX: `python -m jaxbooth.train --config FILE --workdir RUN`, or `train` from Python."""

import sys
from pathlib import Path
from typing import Any

from booth.commands import cli
from booth.diffusion.backend import load_backend
from booth.train import loop


def train(config: Any, workdir: str | Path, from_step: int | None = None) -> loop.Run:
    """Runs or resumes the whole job in `workdir`; returns the run with its pipeline path and metrics.

    `config` is `booth.config.default_config()` with its fields set, or what `load_config` read. Raises UserError.
    """
    return loop.train(load_backend("jaxbooth"), config, workdir, from_step)


if __name__ == "__main__":
    sys.exit(cli.main("jaxbooth", ["train", *sys.argv[1:]]))
