"""The benchmark trains on batches like those of a run."""

import numpy as np
from benchmark_gpu import random_batch
from fake_backend import FakeBackend

from booth.diffusion.backend import ROW_FIELDS
from booth.models.open import open_pipeline
from booth.train import loop


def test_a_random_batch_has_the_shapes_of_a_real_one(tiny_config, tmp_path):
    real = []

    class Recording(FakeBackend):
        def train_step(self, state, batch):
            real.append(batch)
            return super().train_step(state, batch)

    loop.train(Recording, tiny_config, tmp_path / "run")
    pipeline = open_pipeline(tiny_config.model.source)
    made = random_batch(pipeline, 4, 64, seed=0)
    assert made.prompts.shape == (2, 77, pipeline.component_config("unet")["cross_attention_dim"])
    for name in ROW_FIELDS:
        mine, theirs = getattr(made, name), getattr(real[0], name)
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), name
    assert np.array_equal(made.prior_weight > 0, real[0].prior_weight > 0)
    assert made.learning_rate.keys() == real[0].learning_rate.keys()
