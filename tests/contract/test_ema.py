"""The average of the weights is diffusers' EMAModel's, is what comes out, and is resumed to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel

from booth.config.values import set_field
from booth.data.inputs import check_inputs
from booth.models.open import open_pipeline
from booth.train import loop
from booth.train.checkpoints import Checkpoints, checkpoint_size
from booth.train.learning_rate import learning_rates
from booth.train.preparation import prepare
from booth.train.run_folder import RunDir
from booth.train.run_record import read_record

DECAY = 0.3  # warmup is below it for three updates: 0, 2/11, 3/12
TOLERANCE = 1e-5
CASES = {
    "all weights": {"train.learning_rate": 1e-3},
    "LoRA and tokens": {
        "adapter.kind": "lora",
        "adapter.rank": 4,
        "train.learning_rate": 1e-3,
        "tokens.add": ("<saya_token>=a",),
        "tokens.learning_rate": 1e-2,
        "instance.prompt": "a photo of <saya_token>",
    },
}


@pytest.fixture(params=["all weights", pytest.param("LoRA and tokens", marks=pytest.mark.full)])
def trained(request, backend_class, tiny_config, tmp_path):
    """(the weights at first and after each of six updates, the third of which is not finite; the average)."""
    for name, value in CASES[request.param].items():
        set_field(tiny_config, name, value)
    inputs = check_inputs(tiny_config)
    backend = backend_class(tiny_config)
    with RunDir.open(tmp_path / "run", backend.name, tiny_config) as run:
        make = prepare(tiny_config, inputs, run, backend, backend.load(inputs.pipeline))
    batches = [make(step, learning_rates(tiny_config, 0)) for step in range(6)]
    batches[2] = replace(batches[2], latents=batches[2].latents * np.float32(np.nan))

    def train(decay):
        tiny_config.ema.decay = decay
        backend = backend_class(tiny_config)
        state = backend.init(backend.load(inputs.pipeline))
        history = [tensors(backend, state)]
        for batch in batches:
            state, _ = backend.train_step(state, batch)
            history.append(tensors(backend, state))
        return history

    return train(0.0), train(DECAY)


def tensors(backend, state):
    return {f"{component}.{name}": array.copy() for component, name, array in backend.tensors(state)}


def averaged(history, left_out=(3,), **options):
    """diffusers' average of what was trained after each update but those that were left out."""
    weights = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in history[0].items()}
    model = EMAModel(weights.values(), decay=DECAY, **options)
    for update, trained in enumerate(history):
        if update > 0 and update not in left_out:
            for name, parameter in weights.items():
                parameter.data = torch.from_numpy(trained[name])
            model.step(weights.values())
    return {name: average.numpy() for name, average in zip(weights, model.shadow_params, strict=True)}


def distance(average, reference, first):
    """Of two averages, against how far the second has come."""
    assert average.keys() == reference.keys()
    size = sum(np.sum((reference[name] - first[name]) ** 2.0) for name in first)
    return np.sqrt(sum(np.sum((average[name] - reference[name]) ** 2.0) for name in first) / size)


def test_the_average_is_diffusers(trained):
    live, average = trained
    first, ours = live[0], average[-1]
    assert all(np.array_equal(average[0][name], first[name]) for name in first)
    assert all(np.array_equal(average[2][name], average[3][name]) for name in first), "that update never happened"
    found = distance(ours, averaged(live), first)
    print(f"average {found:.1e}")
    assert found < TOLERANCE
    mutants = {
        "weights before the update": averaged([first, *live[:-1]], left_out=(4,)),
        "no warmup": averaged(live, min_decay=DECAY),
        "another warmup": averaged(live, use_ema_warmup=True),
        "counts what was left out": averaged(live, left_out=()),
        "none at all": live[-1],
    }  # fmt: skip
    for name, mutant in mutants.items():
        assert distance(mutant, averaged(live), first) > 10 * TOLERANCE, name


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_whole_runs(backend_class, tiny_config, tmp_path):
    """Previews and a stay in the host's memory change nothing; what is made is the average, a checkpoint has both."""
    tiny_config.ema.decay, tiny_config.train.learning_rate = 0.9, 1e-3
    tiny_config.samples.every_steps, tiny_config.samples.inference_steps = 2, 2
    made = []

    class Watched(backend_class):
        def sample(self, models, *arguments):
            made.append((arguments, super().sample(models, *arguments)))
            return made[-1][1]

    whole = loop.train(Watched, tiny_config, tmp_path / "whole")
    tiny_config.samples.every_steps, tiny_config.train.steps = 0, 1
    tiny_config.prior.images = str(whole.path / "class_images")
    loop.train(backend_class, tiny_config, tmp_path / "parts")
    tiny_config.train.steps, tiny_config.ema.device = 4, "host"
    parts = loop.train(backend_class, tiny_config, tmp_path / "parts")
    assert [line["loss"] for line in parts.metrics] == [line["loss"] for line in whole.metrics]
    exported, again = (open_pipeline(run.pipeline).tensors("unet") for run in (whole, parts))
    assert all(np.array_equal(exported[name], again[name]) for name in exported)
    backend, (arguments, preview) = backend_class(tiny_config), made[-1]
    assert np.array_equal(backend.sample(backend.load(open_pipeline(whole.pipeline)), *arguments), preview)

    pipeline = open_pipeline(tiny_config.model.source)
    checkpoints = Checkpoints(parts.path / "checkpoints", read_record(parts.path).run_id)

    def restored(training):
        state = backend.init(backend.load(pipeline), training=training)
        return checkpoints.restore(backend, state, 4)

    for training in (True, False):
        ours = {name: array for _, name, array in backend.tensors(restored(training))}
        assert all(np.array_equal(ours[name], exported[name]) for name in exported)
    tiny_config.ema.decay = 0.0
    backend = backend_class(tiny_config)
    live = {name: array for _, name, array in backend.tensors(restored(True))}
    assert not any(np.array_equal(live[name], exported[name]) for name in exported), "as trained, and not averaged"
    written = sum(path.stat().st_size for path in checkpoints.path(4).rglob("*") if path.is_file())
    tiny_config.ema.decay = 0.9
    assert 0.9 * checkpoint_size(tiny_config, pipeline) < written <= checkpoint_size(tiny_config, pipeline)
