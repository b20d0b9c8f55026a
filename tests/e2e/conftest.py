"""Fixtures that run the command line as a user does: in real processes, or `cli.main` in this one for messages."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from waiting import PATIENCE_S

# A test run that was started in the background ignores Ctrl-C, and its child processes would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CONFIG = Path(__file__).parents[2] / "configs" / "smoke.py"

# Program text that wraps all finders of modules and hides some packages, as if they were not installed.
WITHOUT = """
import os, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["WITHOUT"].split():
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.fixture(scope="session")
def job(tiny_pipeline, photos):
    """Return a function that gives the arguments of `train` for a small job; keywords change fields.

    The job has two class images, 2 + 2 rows and four steps.
    """

    def job(workdir, **fields):
        values = {
            "model.source": tiny_pipeline, "instance.images": photos, "prior.count": 2, "prior.inference_steps": 2,
            "prior.batch_size": 2, "train.batch_size": 2, "train.steps": 4, "checkpoint.every_steps": 2,
            "samples.every_steps": 0,
        }  # fmt: skip
        values |= {name.replace("__", "."): value for name, value in fields.items()}
        overrides = [f"--config.{name}={value}" for name, value in values.items()]
        return ["--config", str(CONFIG), "--workdir", str(workdir), *overrides]

    return job


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Return a function that makes the environment of a process.

    The process first runs `sitecustomize`, and the packages in `without` seem not to be installed.
    """

    def environment(sitecustomize="", without=""):
        folder = tmp_path_factory.mktemp("site")
        (folder / "sitecustomize.py").write_text(WITHOUT * bool(without) + sitecustomize)
        return os.environ | {"PYTHONPATH": str(folder), "WITHOUT": without, "PYTHONFAULTHANDLER": ""}

    return environment


@pytest.fixture
def run(tmp_path, environment):
    """Return a function that runs `python -m MODULE ARGUMENTS` outside the project's folder."""

    def run(module, *arguments, env=None, **options):
        command = [sys.executable, "-m", module, *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=env or environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            **options,
        )

    return run


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def main(capfd):
    """Yield a function that runs `cli.main` in this process and returns its exit code and output."""
    from booth.commands import cli

    log = logging.getLogger("booth")
    before = log.handlers[:], log.propagate, log.level

    def main(package, *arguments):
        log.handlers[:] = []  # so that the command makes a handler for this test's stderr
        capfd.readouterr()
        code = cli.main(package, [*map(str, arguments)])
        return Outcome(code, *capfd.readouterr())

    yield main
    log.handlers[:], log.propagate, log.level = before
