"""Dropout of adapters is for training: pictures are made without it, and a resumed run leaves out the same."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from booth.diffusion.sampling import initial_noise, sampling_table
from booth.models.lora_file import FILE
from booth.models.open import open_pipeline
from booth.train import loop
from torchbooth.backend import Backend


def same(*runs):
    one, two = (load_file(run.pipeline / FILE) for run in runs)
    return all(np.array_equal(one[name], two[name]) for name in one)


def test_pictures_change_nothing_where_the_unet_is_frozen(tiny_config, tmp_path):
    """A new token alone: the UNet computes its gradient in the same mode before pictures and after."""
    config = tiny_config
    config.tokens.add, config.instance.prompt, config.train.unet = ("<tok>=robot",), "a photo of <tok> robot", False
    plain = loop.train(Backend, config, tmp_path / "plain")
    config.samples.every_steps, config.samples.inference_steps = 1, 2
    shown = loop.train(Backend, config, tmp_path / "shown")
    rows = [load_file(run.path / "tokens" / "tok.safetensors")["<tok>"] for run in (plain, shown)]
    assert np.array_equal(*rows)
    assert [line["loss"] for line in plain.metrics] == [line["loss"] for line in shown.metrics]


@pytest.mark.full
def test_pictures_know_no_dropout(tiny_config, tmp_path):
    config = tiny_config
    config.adapter.kind, config.adapter.dropout, config.train.learning_rate = "lora", 0.5, 1e-2
    config.adapter.targets = "all"
    run = loop.train(Backend, config, tmp_path / "run")
    config.train.steps = 2
    loop.train(Backend, config, tmp_path / "parts")
    config.train.steps = 4
    parts = loop.train(Backend, config, tmp_path / "parts")
    assert same(run, parts)
    config.adapter.dropout = 0.0
    without = loop.train(Backend, config, tmp_path / "without")
    assert not same(run, without), "it does something"

    config.adapter.dropout = 0.9
    pipeline = open_pipeline(config.model.source)
    context = np.ones((1, 77, 64), np.float32)
    job = (initial_noise(0, (8, 8, 4))[None], context, context, sampling_table(pipeline, "ddim", 2), 1.0)
    backend = Backend(config)
    for training in (False, True):
        state = backend.init(backend.load(pipeline), training=training)
        for name, parameter in state.trainable.items():
            parameter.data.fill_(0.02 if ".lora_B." in name else 0.1)
        one, two = (backend.sample(backend.models(state), *job) for _ in range(2))
        assert np.array_equal(one, two)
