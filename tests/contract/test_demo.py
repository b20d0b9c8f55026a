"""configs/demo.py with both backends, on the tiny pipeline in the place of the embedded base."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from booth.config.loading import load_config
from booth.models import embedded
from booth.train import loop

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"


@pytest.fixture
def demo(tiny_pipeline, monkeypatch):
    """The demo in a few seconds: two updates, few images, two denoising steps."""
    monkeypatch.setattr(embedded, "BASE", tiny_pipeline)
    config = load_config(DEMO)
    config.train.steps, config.train.batch_size = 2, 2
    config.prior.count, config.prior.batch_size, config.prior.inference_steps = 2, 2, 2
    config.samples.prompts, config.samples.images_per_prompt, config.samples.inference_steps = (), 1, 2
    return config


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_the_demo_leaves_a_pipeline_and_before_and_after(backend_class, demo, tmp_path):
    demo.train.learning_rate = 1e-2
    run = loop.train(backend_class, demo, tmp_path / "run")
    assert (run.pipeline / "model_index.json").is_file()
    with Image.open(run.path / "samples" / "before_after.png") as picture:
        pixels = np.asarray(picture, int)
    assert pixels.shape == (5 * (20 + 128 + 8) + 8, 5 * (128 + 8) + 8, 3), "five rows, five instance pictures"
    base, tuned = (pixels[8 + n * 156 + 20 :][:128, 8 : 8 + 128] for n in (1, 2))
    assert np.abs(base - tuned).mean() > 1, "the tuned model makes other pictures of the same seed"
    kept = [np.asarray(Image.open(path), int) for path in (run.path / "samples" / "base").iterdir()]
    assert len(kept) == 2 and any(np.array_equal(base, image.repeat(2, axis=0).repeat(2, axis=1)) for image in kept)
