"""The compiled step."""

import pytest

from booth.data.inputs import check_inputs
from booth.diffusion.objective import dreambooth_loss
from booth.models.open import open_pipeline
from booth.train.preparation import prepare
from booth.train.run_folder import RunDir
from jaxbooth import step
from jaxbooth.backend import Backend


@pytest.mark.full
def test_the_step_is_compiled_once_for_all_steps_and_runs(tiny_config, tmp_path, monkeypatch):
    """A state whose placement changes from step to step would be compiled again, for minutes at full size."""
    traced = []
    monkeypatch.setattr(step, "dreambooth_loss", lambda *arguments: traced.append(1) or dreambooth_loss(*arguments))
    tiny_config.train.adam_b1 = 0.87  # no other test has traced this step
    for seed in (0, 1):
        tiny_config.train.seed = seed
        backend, inputs = Backend(tiny_config), check_inputs(tiny_config)
        models = backend.load(inputs.pipeline)
        with RunDir.open(tmp_path / f"run{seed}", "jax", tiny_config) as run:
            batches = prepare(tiny_config, inputs, run, backend, models)
        state = backend.init(models)
        for number in range(3):
            state, _ = backend.train_step(state, batches(number, {"unet": 1e-4}))
        (tmp_path / f"saved{seed}").mkdir()
        backend.save(state, tmp_path / f"saved{seed}")
        state = backend.restore(state, tmp_path / f"saved{seed}")
        backend.train_step(state, batches(3, {"unet": 1e-4}))
    assert len(traced) == 1


def test_gradient_checkpointing_reaches_the_network(tiny_config):
    """That remat trains the same is shown on the model itself."""
    pipeline = open_pipeline(tiny_config.model.source)
    plain = Backend(tiny_config).load(pipeline)
    tiny_config.train.gradient_checkpointing = "block"
    models = Backend(tiny_config).load(pipeline)
    assert models.unet.bind(models.of("unet")).remat
    assert not plain.unet.bind(plain.of("unet")).remat
