"""What is particular to sampling with JAX: compiled once, and no more decoded at once than one image a device."""

from itertools import pairwise

import jax
import numpy as np
import pytest

from booth.diffusion.sampling import initial_noise, sampling_table, step_noise
from booth.models.open import open_pipeline
from jaxbooth import sample
from jaxbooth.backend import Backend


@pytest.fixture
def compiled():
    """The names of the functions that are compiled, or found in the cache on disk, while the test runs."""
    names = []

    def listener(event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield names
    jax.monitoring.unregister_event_duration_listener(listener)


def test_solvers_and_numbers_of_steps_share_one_compilation(tiny_config, tiny_pipeline, compiled, monkeypatch):
    shapes, decode = [], sample._decode

    def watched(params, latents, **network):
        shapes.append(latents.shape)
        return decode(params, latents, **network)

    monkeypatch.setattr(sample, "_decode", watched)
    pipeline = open_pipeline(tiny_pipeline)
    backend = Backend(tiny_config)
    models = backend.load(pipeline)
    context = np.random.default_rng(0).standard_normal((2, 77, 64)).astype(np.float32)
    noise = np.stack([initial_noise(seed, (8, 8, 4)) for seed in (0, 1)])
    step_noises = np.stack([step_noise(seed, 3, (8, 8, 4)) for seed in (0, 1)])
    sample._denoise.clear_cache()  # of other tests
    images = [
        backend.sample(models, noise, context, context[::-1], sampling_table(pipeline, solver, steps), guidance, fresh)
        for solver, steps, guidance, fresh in (
            ("dpm++", 2, 5.0, None), ("dpm++", 3, 5.0, None), ("ddim", 3, 5.0, None), ("ddim", 3, 4.0, None),
            ("euler", 3, 4.0, None), ("euler_a", 3, 4.0, step_noises), ("pndm", 3, 4.0, None),
        )
    ]  # fmt: skip
    assert compiled.count("jit(_denoise)") == 1
    assert all(not np.array_equal(a, b) for a, b in pairwise(images)), "their inputs count"
    assert shapes == [(1, 8, 8, 4)] * 14
