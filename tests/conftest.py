"""Shared fixtures. A compilation cache serves all JAX tests, in this process and in subprocesses."""

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
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run two at a time; waiting threads that spin cost minutes
os.environ.setdefault("TQDM_MININTERVAL", "5")
os.environ["HF_HUB_OFFLINE"] = "1"  # a test meets the hub only as the server below
if hasattr(signal, "SIGHUP"):  # `nohup` and some build servers have it ignored, and so would all processes of the tests
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    """A folder with the tiny pipeline; tests must not write into it."""
    from make_pipeline import make_pipeline

    return make_pipeline("tiny", tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture(scope="session")
def tiny_sd2_pipeline(tmp_path_factory):
    """The same of Stable Diffusion 2, predicting the velocity; tests must not write into it."""
    from make_pipeline import make_pipeline

    return make_pipeline("tiny-sd2", tmp_path_factory.mktemp("pipeline") / "tiny-sd2")


@pytest.fixture(scope="session")
def measuring_networks(tmp_path_factory, tiny_pipeline):
    """Folders `dino` and `clip`: a ViT and a CLIP of 32 pixels with random weights; tests must not write into them."""
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
    """A folder with five pictures of one robot; tests must not write into it."""
    from draw_photos import draw_photos

    folder = tmp_path_factory.mktemp("photos") / "robot"
    draw_photos(folder)
    return folder


@pytest.fixture(scope="session")
def make_tiny_config(tiny_pipeline, photos):
    """Makes small valid configs: 64 pixels, 2 + 2 rows, two class images, four steps; compiled once for all."""
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
    """A command leaves the project's log with a handler on what was stderr then."""
    log = logging.getLogger("booth")
    before = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate, log.level = before


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of this test's own, with an empty cache in `tmp_path / "cache"`; other processes get it by `hub_env`."""
    from hub_server import HubServer
    from huggingface_hub import constants

    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage speaks another protocol
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def hub_env(hub, tmp_path):
    """What other processes have in their environment to meet that hub."""
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
    """Files that take minutes begin first, so that none is left for one worker alone at the end."""
    if not config.option.minutes:
        places = {name: place for place, name in enumerate(SLOW_FIRST)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_runtest_setup(item):
    if item.config.option.minutes and time.monotonic() - BEGAN > 60 * item.config.option.minutes:
        pytest.skip(f"not begun after {item.config.option.minutes:g} minutes")
