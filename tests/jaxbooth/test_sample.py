"""What is particular to sampling with JAX: compiled once, and no more decoded at once than one image a device."""

import numpy as np

from booth.pipeline_dir import open_pipeline
from booth.sampling import initial_noise, sampling_table
from jaxbooth import sample
from jaxbooth.backend import Backend


def test_solvers_and_numbers_of_steps_share_one_compilation(tiny_config, tiny_pipeline, monkeypatch):
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
    before = sample._denoise._cache_size()
    images = [
        backend.sample(models, noise, context, context[::-1], sampling_table(pipeline, solver, steps), 5.0)
        for solver, steps in (("dpm++", 2), ("dpm++", 3), ("ddim", 3))
    ]
    assert sample._denoise._cache_size() == before + 1
    assert not np.array_equal(images[1], images[2])
    assert shapes == [(1, 8, 8, 4)] * 6
