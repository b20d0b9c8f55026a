"""Train with JAX: `python -m jaxbooth.train --config FILE --workdir RUN`, or `train` from Python."""

import sys
from pathlib import Path
from typing import Any

from booth.commands import cli, training
from booth.train.loop import Run


def train(config: Any, workdir: str | Path, from_step: int | None = None) -> Run:
    """Run or resume the whole job in `workdir`; return the run with its pipeline path and metrics.

    `config` is `booth.config.default_config()` with its fields set, or the result of `load_config`. Raise UserError for
    anything that the user can correct.
    """
    return training.train("jaxbooth", config, workdir, from_step)


if __name__ == "__main__":
    sys.exit(cli.main("jaxbooth", ["train", *sys.argv[1:]]))
