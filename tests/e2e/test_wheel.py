"""The project without a checkout: a wheel is built, unpacked, and used in another folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
PACKAGES = ("booth", "jaxbooth", "torchbooth", "configs")


def installed(file):
    """The place of a file of the checkout in the wheel."""
    return f"booth/{file}" if file.startswith("configs/") else file


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of an unpacked wheel, which was built from a copy: building leaves files behind."""
    pytest.importorskip("setuptools")
    copy = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    made = tmp_path_factory.mktemp("wheel")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check", "--wheel-dir", made)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *map(str, options), str(copy)],
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = made.glob("*.whl")
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def test_the_wheel_has_every_file(site):
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    names = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    found = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert sorted({installed(name) for name in names} - found) == []
    assert {f"{name}/py.typed" for name in PACKAGES[:3]} <= found


def test_a_run_from_the_wheel(site, tmp_path):
    """A config by its bare name, the embedded base and an example subject: no file of a checkout is at hand."""
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "torchbooth", *arguments], cwd=tmp_path, env=environment, capture_output=True,
            text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    short = ("train", "example:mug", "--subject", "a sks mug", "--model", "embedded", "--dry-run")
    config = json.loads(run(*short, "--config", "sd15_lora", "data.resolution=64"))
    assert config["adapter"]["kind"] == "lora" and config["data"]["resolution"] == 64
    assert Path(config["instance"]["images"]).is_relative_to(site)
    assert run("--version").startswith("torchbooth ")
    assert not list(tmp_path.iterdir())
