"""Prodigy: the same in both backends as its authors have it, resumed to the bit."""

import importlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from booth.common.errors import UserError
from booth.config.auto import with_numbers
from booth.config.values import set_field
from booth.data.input_rules import validate
from booth.models.lora_file import FILE
from booth.models.pipeline import open_pipeline
from booth.train import loop
from booth.train.checkpoints import checkpoint_size

pytest.importorskip("prodigyopt")
FIELDS = {
    "train.optimizer": "prodigy",
    "train.learning_rate": 1.0,
    "train.lr_warmup_steps": 2,  # so that the first update has a rate of 0
    "train.steps": 20,
    "adapter.kind": "lora",
    "adapter.rank": 4,
    "checkpoint.every_steps": 0,
}


@pytest.fixture(scope="module")
def configured(make_tiny_config, tmp_path_factory):
    images = str(tmp_path_factory.mktemp("class_images"))

    def configured(**fields):
        config = make_tiny_config()
        config.prior.images = images
        for name, value in (FIELDS | fields).items():
            set_field(config, name, value)
        return config

    return configured


@pytest.fixture(scope="module")
def trained(configured, tmp_path_factory):
    """package -> its run, made once."""
    runs = {}

    def trained(package):
        if package not in runs:
            folder = tmp_path_factory.mktemp("run") / "run"
            runs[package] = loop.train(backend_of(package), configured(), folder)
        return runs[package]

    return trained


def backend_of(package):
    return importlib.import_module(f"{package}.backend").Backend


def tensors(run):
    return load_file(run.pipeline / FILE)


@pytest.mark.full
def test_both_backends_train_the_same(trained):
    """Adapters and losses; from a rate of 1e-6 on, which it leaves by far."""
    ours, theirs = (tensors(trained(package)) for package in ("jaxbooth", "torchbooth"))
    after = {name for name in theirs if ".lora_B." in name}  # which are 0 at first
    size = np.sqrt(sum(np.sum(theirs[name] ** 2.0) for name in after))
    difference = np.sqrt(sum(np.sum((ours[name] - theirs[name]) ** 2.0) for name in theirs))
    print(f"size {size:.2e} difference {difference / size:.1e}")
    assert np.abs(theirs[min(after)]).max() > 1e-5, "Adam at 1e-6 could not have come that far"
    assert difference < 5e-3 * size
    for name in ("loss", "grad_norm"):
        values = [[line[name] for line in trained(package).metrics] for package in ("jaxbooth", "torchbooth")]
        np.testing.assert_allclose(*values, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_resumed_equals_uninterrupted_to_the_bit(package, trained, configured, tmp_path):
    for steps in (7, 20):
        parts = loop.train(backend_of(package), configured(**{"train.steps": steps}), tmp_path / "parts")
    whole = tensors(trained(package))
    assert all(np.array_equal(array, whole[name]) for name, array in tensors(parts).items())
    if package == "torchbooth":  # Orbax adds files of its own, more than such small ones have
        files = (parts.path / "checkpoints" / "step-000020").rglob("*")
        written = sum(path.stat().st_size for path in files if path.is_file())
        size = checkpoint_size(configured(), open_pipeline(configured().model.source))
        assert 0.7 * size < written <= size


def test_auto_is_a_rate_of_1(configured):
    assert with_numbers(configured(**{"train.learning_rate": "auto"}), photos=5).train.learning_rate == 1.0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"train.learning_rate": 1e-4}, r"^train.learning_rate=0.0001 must be at least 0.1, best 1"),
        ({"tokens.add": ("<x>=a",), "instance.prompt": "a <x>"}, r"finds one learning rate for all"),
        ({"train.text_encoder": True, "train.text_encoder_learning_rate": 0.5}, r"finds one learning rate for all"),
        (
            {"memory.offload_optimizer": "always"},
            r"offload_optimizer='always': they update one tensor at a time",
        ),
        ({"memory.fused_backward": True}, r"does not go with memory.fused_backward=true"),
        ({"adapter.kind": "none", "train.pull": 0.1}, r"^train.pull=0.1 must be 0 with train.optimizer='prodigy'"),
    ],
)
def test_what_it_does_not_go_with(configured, fields, said):
    with pytest.raises(UserError, match=said):
        validate(configured(**fields), "torch")
