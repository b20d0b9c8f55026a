"""Runs that train the text encoder too."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.numpy import load_file

from booth.commands import cli
from booth.data.inputs import check_inputs
from booth.train import loop
from booth.train.learning_rate import learning_rates
from booth.train.preparation import prepare
from booth.train.run_folder import RunDir


@pytest.fixture
def config(tiny_config):
    """Everything at once that may get in each other's way."""
    tiny_config.train.update(
        text_encoder=True,
        text_encoder_learning_rate=1e-4,
        accumulation=2,
        gradient_checkpointing="block",
        lr_schedule="linear",
        learning_rate=2e-4,
    )
    tiny_config.samples.update(every_steps=2, inference_steps=2)
    return tiny_config


def text_encoder(folder):
    return load_file(f"{folder}/text_encoder/model.safetensors")


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_from_photos_to_a_pipeline_resumed_to_the_bit(backend_class, config, tmp_path):
    whole = loop.train(backend_class, config, tmp_path / "whole")
    # Killed after the checkpoint of step 2: the schedule is that of the whole run.
    config.checkpoint.every_steps = 2
    loop.train(backend_class, config, tmp_path / "parts")
    parts = loop.train(backend_class, config, tmp_path / "parts", from_step=2)
    assert [line["loss"] for line in parts.metrics] == [line["loss"] for line in whole.metrics]

    source, tuned, again = (text_encoder(f) for f in (config.model.source, whole.pipeline, parts.pipeline))
    assert tuned.keys() == source.keys() and all(key.startswith("text_model.") for key in tuned)
    assert all(np.array_equal(tuned[key], again[key]) for key in tuned)
    # A softmax does not change when all its logits do: the gradient of a key's bias is rounding.
    moved = [key for key in source if "k_proj.bias" not in key and "position_ids" not in key]
    assert all(not np.array_equal(tuned[key], source[key]) for key in moved)
    assert len(list((whole.path / "samples").iterdir())) == 2

    rates = [(line["learning_rate"], line["text_encoder_learning_rate"]) for line in whole.metrics]
    assert rates[0] == pytest.approx((2e-4, 1e-4)) and rates[3] == pytest.approx((5e-5, 2.5e-5))
    theirs = StableDiffusionPipeline.from_pretrained(whole.pipeline).text_encoder.state_dict()
    for key, value in theirs.items():
        if "position_ids" not in key:
            assert torch.equal(value, torch.from_numpy(tuned[f"text_model.{key.removeprefix('text_model.')}"]))


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_a_checkpoint_is_exported_with_its_text_encoder(backend_class, package, config, tmp_path):
    config.samples.every_steps, config.checkpoint.every_steps = 0, 2
    run = loop.train(backend_class, config, tmp_path / "run")
    for step, same in ((4, True), (2, False)):
        out = tmp_path / f"step-{step}"
        assert cli.main(package, ["export", "--run", str(run.path), "--step", str(step), "--out", str(out)]) == 0
        exported, final = text_encoder(out), text_encoder(run.pipeline)
        assert all(np.array_equal(exported[key], final[key]) for key in final) == same


def test_each_prompt_is_encoded_once_an_update(backend_class, package, config, tmp_path, monkeypatch):
    inputs, backend = check_inputs(config), backend_class(config)
    models = backend.load(inputs.pipeline)
    with RunDir.open(tmp_path / "run", backend.name, config) as run:
        batch = prepare(config, inputs, run, backend, models)(0, learning_rates(config, 0))
    assert batch.prompts.shape == (2, 77) and batch.prompts.dtype == np.int32
    encoded = []
    if package == "torchbooth":
        forward = models.text_encoder.forward
        monkeypatch.setattr(models.text_encoder, "forward", lambda ids: encoded.append(ids.shape) or forward(ids))
        backend.train_step(backend.init(models), batch)
    else:
        import jax

        from jaxbooth import step
        from jaxbooth.sharding import make_mesh, place_batch
        from jaxbooth.weights import Network

        bind = Network.bind

        def watched(network, *arguments):
            model = bind(network, *arguments)
            return (lambda ids: encoded.append(ids.shape) or model(ids)) if network is models.text_encoder else model

        monkeypatch.setattr(Network, "bind", watched)
        state = backend.init(models)
        mesh = make_mesh(1)
        placed = place_batch(mesh, batch, 2)
        jax.eval_shape(
            lambda trainable: step._gradients(trainable, {}, placed, models.unet, models.text_encoder, mesh),
            state.trainable,
        )
    assert encoded == [(2, 77)], "two prompts, once, for eight rows in two pieces"
