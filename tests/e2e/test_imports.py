"""No framework where it does not belong: the core needs none, each backend only its own."""

import subprocess
import sys

import pytest
from PIL import Image

IMPORT_CORE = """
import importlib, pkgutil, sys
import booth

for module in pkgutil.walk_packages(booth.__path__, "booth."):
    importlib.import_module(module.name)
ours = {"booth.commands.cli", "booth.train.loop", "booth.models.export_folder", "booth.config.values"}
assert ours <= sys.modules.keys()
frameworks = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "diffusers", "accelerate", "tensorflow"}
found = frameworks & sys.modules.keys()
sys.exit(f"booth imports {sorted(found)}" if found else 0)
"""
OTHERS = {"jaxbooth": "torch diffusers accelerate torchbooth", "torchbooth": "jax jaxlib flax optax orbax jaxbooth"}


@pytest.fixture
def python(tmp_path, environment):
    def python(code, **options):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, env=environment(**options), capture_output=True, text=True)

    return python


def test_the_core_imports_no_framework(python):
    done = python(IMPORT_CORE)
    assert done.returncode == 0, done.stderr
    assert python(IMPORT_CORE, sitecustomize="\nimport jax\n").returncode == 1, "the check sees what is imported"


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_what_is_blocked_below_cannot_be_imported(python, package):
    blocked = python(f"import {package}", without=f"{package} other")
    assert f"ModuleNotFoundError: No module named {package!r}" in blocked.stderr
    look_up = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    assert python(look_up, without=package).returncode == 1 and python(look_up).returncode == 0


@pytest.mark.full
@pytest.mark.parametrize("package", ["torchbooth", "jaxbooth"])
def test_trains_samples_and_exports_without_the_other_framework(package, run, job, environment, tmp_path):
    env = environment(without=OTHERS[package])
    trained = run(f"{package}.train", *job("run", samples__every_steps=4, samples__inference_steps=2), env=env)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    sampled = run(package, "sample", "--model", "run/pipeline", "--prompt", "a photo of sks robot", "--seeds", 1, 2,
                  "--size", 64, "--steps", 2, "--batch-size", 2, "--out", "pictures", env=env)  # fmt: skip
    assert sampled.returncode == 0, sampled.stderr
    assert Image.open(tmp_path / "pictures" / "001-a-photo-of-sks-robot-seed2.png").size == (64, 64)
    exported = run(package, "export", "--run", "run", "--step", 2, "--out", "exported", env=env)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "exported" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.parametrize(("package", "framework"), [("torchbooth", "torch"), ("jaxbooth", "jax")])
def test_a_missing_framework_is_one_line(package, framework, run, job, environment):
    done = run(package, "train", *job("run"), env=environment(without=framework))
    assert done.returncode == 2
    assert done.stderr == (
        f"{package}: error: {package} cannot be loaded (No module named '{framework}');"
        f" install this project with its [{framework}] extra\n"
    )
