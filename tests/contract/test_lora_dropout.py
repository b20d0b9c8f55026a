"""Dropout of adapters: something is left out, the same in a resumed run, and nothing in pictures."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from booth.models.lora_file import FILE
from booth.train import loop


@pytest.fixture(params=["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])  # which compiles twice
def package(request):
    return request.param


@pytest.fixture
def trained(backend_class, tiny_config, tmp_path):
    """A folder and fields of `adapter` -> the LoRA of a run of so many steps."""

    def trained(name, steps=4, **fields):
        tiny_config.adapter.kind, tiny_config.adapter.rank, tiny_config.train.learning_rate = "lora", 4, 1e-3
        tiny_config.prior.images = str(tmp_path / "class_images")
        tiny_config.adapter.update(fields)
        tiny_config.train.steps = steps
        return load_file(loop.train(backend_class, tiny_config, tmp_path / name).pipeline / FILE)

    return trained


def same(one, two):
    return all(np.array_equal(one[name], two[name]) for name in one)


def test_a_resumed_run_leaves_out_the_same(trained):
    whole = trained("whole", dropout=0.5)
    trained("parts", steps=2)
    assert same(trained("parts"), whole)
    assert not same(trained("without", dropout=0.0), whole)
