"""Fixtures for all tests. All JAX tests, in this process and in subprocesses, share one compilation cache."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at a time; threads that spin would cost minutes
os.environ.setdefault("TQDM_MININTERVAL", "5")
os.environ["HF_HUB_OFFLINE"] = "1"  # tests reach no hub but the server of the fixture `hub`
if hasattr(signal, "SIGHUP"):  # `nohup` and some build servers ignore it, and so would all processes of the tests
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    """Return a folder with the tiny pipeline; tests must not write into it."""
    from make_pipeline import make_pipeline

    return make_pipeline("tiny", tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture(scope="session")
def tiny_sd2_pipeline(tmp_path_factory):
    """Return a folder with a tiny Stable Diffusion 2 that predicts the velocity; tests must not write into it."""
    from make_pipeline import make_pipeline

    return make_pipeline("tiny-sd2", tmp_path_factory.mktemp("pipeline") / "tiny-sd2")


@pytest.fixture(scope="session")
def measuring_networks(tmp_path_factory, tiny_pipeline):
    """Return a folder with a ViT (`dino`) and a CLIP (`clip`) for 32 pixels, with random weights.

    Tests must not write into it.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

    folder, tokenizer = tmp_path_factory.mktemp("networks"), CLIPTokenizer.from_pretrained(tiny_pipeline / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    eye = {**small, "image_size": 32, "patch_size": 8}
    reader = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    reader |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(**eye), add_pooling_layer=False).save_pretrained(folder / "dino")
        config = CLIPConfig(text_config=reader, vision_config=eye, projection_dim=12)
        CLIPModel(config).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Return a folder with five pictures of one robot; tests must not write into it."""
    from draw_photos import draw_photos

    folder = tmp_path_factory.mktemp("photos") / "robot"
    draw_photos(folder)
    return folder


@pytest.fixture(scope="session")
def make_tiny_config(tiny_pipeline, photos):
    """Return a function that makes small valid configs: 64 pixels, 2 + 2 rows, two class images, four steps.

    Functions that are compiled for one of these configs serve all of them.
    """
    from booth.config.values import default_config

    def make():
        config = default_config()
        config.model.source = str(tiny_pipeline)
        config.instance.images = str(photos)
        config.instance.prompt = "a photo of sks robot"
        config.prior.prompt = "a photo of robot"
        config.prior.count = 2
        config.prior.inference_steps = 2
        config.prior.batch_size = 2
        config.train.batch_size = 2
        config.train.steps = 4
        config.data.resolution = 64
        return config

    return make


@pytest.fixture
def tiny_config(make_tiny_config):
    return make_tiny_config()


@pytest.fixture(autouse=True)
def log_as_before():
    """Restore the project's log after each test, as a command leaves a handler for the stderr of that test."""
    log = logging.getLogger("booth")
    before = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate, log.level = before


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Yield a hub server for one test, with an empty cache in `tmp_path / "cache"`; other processes need `hub_env`."""
    from hub_server import HubServer
    from huggingface_hub import constants

    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the storage of Xet has another protocol
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def hub_env(hub, tmp_path):
    """Return the environment variables with which other processes reach the server of the fixture `hub`."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }


SLOW_FIRST = (
    "test_learning.py", "test_sharding.py", "test_plan.py", "test_training.py", "test_crash.py", "test_fit.py",
    "test_lora.py", "test_run.py", "test_memory.py",
)  # fmt: skip


BEGAN = time.monotonic()


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, help="begin no test after so many minutes; in the order of the arguments")


def pytest_collection_modifyitems(config, items):
    """Run files that take minutes first, so that at the end no worker is still busy with one of them alone."""
    if not config.option.minutes:
        places = {name: place for place, name in enumerate(SLOW_FIRST)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_runtest_setup(item):
    if item.config.option.minutes and time.monotonic() - BEGAN > 60 * item.config.option.minutes:
        pytest.skip(f"not begun after {item.config.option.minutes:g} minutes")
