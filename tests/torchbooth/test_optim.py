"""8-bit AdamW and loss scaling, on whole runs and single steps."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from booth.common.errors import UserError
from booth.config.fields import FIELDS
from booth.data.inputs import check_inputs
from booth.diffusion.optimizers import state_bytes
from booth.train import loop
from booth.train.learning_rate import learning_rates
from booth.train.preparation import prepare
from booth.train.run_folder import RunDir
from torchbooth import checkpoint
from torchbooth.backend import Backend
from torchbooth.host_states import movable
from torchbooth.optim import make_optimizer, read_moments


def weights(run):
    return load_file(run.pipeline / "unet" / "diffusion_pytorch_model.safetensors")


def update(run, config):
    before = load_file(config.model.source + "/unet/diffusion_pytorch_model.safetensors")
    return np.concatenate([(array - before[name]).ravel() for name, array in sorted(weights(run).items())])


@pytest.fixture
def eight_bit(tiny_config):
    tiny_config.train.optimizer, tiny_config.train.learning_rate = "adamw8bit", 1e-4
    return tiny_config


def test_8_bit_adamw_trains_nearly_as_adamw_with_smaller_states(eight_bit, tmp_path):
    run = loop.train(Backend, eight_bit, tmp_path / "run")
    ours = update(run, eight_bit)
    eight_bit.train.optimizer = "adamw"
    eight_bit.prior.images = str(run.path / "class_images")
    full = loop.train(Backend, eight_bit, tmp_path / "full")
    exact = update(full, eight_bit)
    difference = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    assert 1e-3 < difference < 5e-2, "eight bits are felt, but hardly"
    sizes = [(r.path / "checkpoints/step-000004/optimizer.safetensors").stat().st_size for r in (run, full)]
    assert sizes[0] < 0.3 * sizes[1]


OPTIMIZERS = next(field.rule.choices for field in FIELDS if field.name == "train.optimizer")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(70,), (5000,), (40, 30), (100, 50), (80, 20, 3, 3)])
def test_the_states_have_the_size_that_is_planned_for(tiny_config, optimizer, shape):
    tiny_config.train.optimizer = optimizer
    parameter = torch.nn.Parameter(torch.ones(shape))
    parameter.grad = torch.ones(shape)
    made = make_optimizer([parameter], tiny_config)
    made.step()
    assert sum(value.nbytes for _, value in movable(made.state[parameter])) == state_bytes(optimizer, shape)


def test_8_bit_adamw_resumes_to_the_bit(eight_bit, tmp_path):
    whole = loop.train(Backend, eight_bit, tmp_path / "whole")
    eight_bit.train.steps = 2
    loop.train(Backend, eight_bit, tmp_path / "parts")
    eight_bit.train.steps = 4
    parts = loop.train(Backend, eight_bit, tmp_path / "parts")
    assert [line["loss"] for line in parts.metrics] == [line["loss"] for line in whole.metrics]
    a, b = weights(whole), weights(parts)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_missing_bitsandbytes_is_one_line(eight_bit, monkeypatch):
    Backend.check(eight_bit)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^train.optimizer='adamw8bit' needs bitsandbytes: .*\[8bit\] extra"):
        Backend.check(eight_bit)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which is not refused")
def test_fp16_on_a_cpu_is_refused_with_the_reason(tiny_config):
    tiny_config.train.precision = "fp16"
    with pytest.raises(UserError, match=r"^train.precision='fp16' needs a GPU: on a CPU float16 is"):
        Backend.check(tiny_config)


@pytest.fixture
def fp16(tiny_config, tmp_path):
    """(backend, a maker of states, batches) in float16, which a CPU can compute in too, only slowly."""
    tiny_config.train.learning_rate = 1e-4
    inputs = check_inputs(tiny_config)
    exact = Backend(tiny_config)
    with RunDir.open(tmp_path / "run", "torch", tiny_config) as run:
        make = prepare(tiny_config, inputs, run, exact, exact.load(inputs.pipeline))
    batches = [make(step, learning_rates(tiny_config, step)) for step in range(4)]
    tiny_config.train.precision = "fp16"
    backend = Backend(tiny_config)

    def state():
        return backend.init(backend.load(inputs.pipeline))

    return backend, state, batches


def snapshot(backend, state):
    weights = [torch.from_numpy(array.copy()) for _, _, array in backend.tensors(state)]
    moments = [sorted(read_moments(state.optimizer, parameter).items()) for parameter in state.trainable.values()]
    return weights + [value.clone() for items in moments for _, value in items]


def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.full
def test_a_nan_lowers_the_loss_scale_and_changes_nothing_else(fp16):
    backend, make_state, batches = fp16
    state = make_state()
    state, metrics = backend.train_step(state, batches[0])
    assert (float(metrics["skipped"]), float(metrics["loss_scale"])) == (0, 65536)
    before = snapshot(backend, state)
    broken = replace(batches[1], latents=batches[1].latents * np.float32(np.nan))
    state, metrics = backend.train_step(state, broken)
    assert (float(metrics["skipped"]), float(metrics["loss_scale"])) == (1, 65536)
    assert same(snapshot(backend, state), before), "weights, moments and their step count"
    state, metrics = backend.train_step(state, batches[1])
    assert (float(metrics["skipped"]), float(metrics["loss_scale"])) == (0, 32768)
    assert not same(snapshot(backend, state), before)


def test_gradients_are_unscaled_before_they_are_clipped(fp16, tiny_config):
    backend, make_state, batches = fp16
    _, scaled = backend.train_step(make_state(), batches[0])
    tiny_config.train.precision = "fp32"
    exact = Backend(tiny_config)
    _, plain = exact.train_step(exact.init(exact.load(check_inputs(tiny_config).pipeline)), batches[0])
    assert float(scaled["loss"]) == pytest.approx(float(plain["loss"]), rel=2e-3)
    assert float(scaled["loss"]) != float(plain["loss"]), "float16 must have been computed in"
    assert float(scaled["grad_norm"]) == pytest.approx(float(plain["grad_norm"]), rel=2e-2)


@pytest.mark.full
def test_the_loss_scale_is_part_of_a_checkpoint(fp16, tmp_path):
    backend, make_state, batches = fp16
    state = make_state()
    for batch in (replace(batches[0], noise=batches[0].noise * np.float32(np.inf)), batches[1]):
        state, _ = backend.train_step(state, batch)
    (tmp_path / "saved").mkdir()
    checkpoint.save(state, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "loss_scale.json").read_text())["scale"] == 32768
    state, _ = backend.train_step(state, batches[2])
    again, metrics = backend.train_step(checkpoint.restore(make_state(), tmp_path / "saved"), batches[2])
    assert float(metrics["loss_scale"]) == 32768
    assert same(snapshot(backend, again), snapshot(backend, state))


@pytest.mark.full
def test_a_skipped_update_shows_in_a_whole_run(tiny_config, tmp_path, caplog):
    class Overflowing(Backend):
        """In float16 on whatever there is; the batch of step 3 overflows."""

        check = staticmethod(lambda config: None)
        steps = 0

        def train_step(self, state, batch):
            self.steps += 1
            gain = np.float32(np.inf if self.steps == 3 else 1)
            return super().train_step(state, replace(batch, latents=batch.latents * gain))

    tiny_config.train.precision = "fp16"
    with caplog.at_level("WARNING", "booth"):
        run = loop.train(Overflowing, tiny_config, tmp_path / "run")
    assert "step 3: gradients overflowed at loss scale 65536: nothing was updated, the scale is halved" in caplog.text
    assert [(line["skipped"], line["loss_scale"]) for line in run.metrics] == [(0, 2**16)] * 2 + [
        (1, 2**16),
        (0, 2**15),
    ]
    assert all(np.isfinite(array).all() for array in weights(run).values())
