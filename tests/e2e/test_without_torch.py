"""jaxbooth in an environment that has never seen torch: made for this test, as the README says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_the_whole_job_without_torch_installed(job, tmp_path):
    bin_folder = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(command, *arguments):
        done = subprocess.run([command, *map(str, arguments)], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(bin_folder / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--constraint", ROOT / "constraints.txt", "--editable", f"{ROOT}[jax]")  # fmt: skip
    installed = run(bin_folder / "python", "-m", "pip", "freeze").lower()
    assert "jax==" in installed and not {"torch", "diffusers"} & {line.partition("==")[0] for line in installed.split()}
    run(bin_folder / "jaxbooth", "train", *job("run", samples__every_steps=4, samples__inference_steps=2))
    run(bin_folder / "jaxbooth", "sample", "--run", "run", "--prompt", "a photo of sks robot", "--size", 64,
        "--steps", 2, "--batch-size", 2, "--out", "pictures")  # fmt: skip
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()
    assert (tmp_path / "run" / "samples" / "step-000004.png").is_file()
    assert (tmp_path / "pictures" / "grid.png").is_file()
