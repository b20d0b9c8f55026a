"""`sample --batch-size auto`: where memory runs out the batch is halved, and images are the same to within 1/255."""

import numpy as np
import pytest
import torch
from PIL import Image

from booth.commands import cli
from torchbooth import sample


@pytest.fixture
def images(tiny_pipeline, tmp_path, monkeypatch):
    """Images of six seeds with so many at once, where there is memory for `most`."""
    real, batches = sample.denoise, []

    def images(batch_size, most):
        def scarce(models, noise_bchw, *arguments):
            batches.append(len(noise_bchw))
            if len(noise_bchw) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return real(models, noise_bchw, *arguments)

        monkeypatch.setattr(sample, "denoise", scarce)
        out = tmp_path / f"{batch_size} {most}"
        command = ["sample", "--model", tiny_pipeline, "--prompt", "a robot", "--seeds", *range(6), "--steps", 4]
        options = ["--solver", "euler_a", "--size", 64, "--batch-size", batch_size, "--out", out]
        assert cli.main("torchbooth", [*map(str, command + options)]) == 0
        made = np.stack([np.asarray(Image.open(path)) for path in sorted(out.glob("0*.png"))])
        return made.astype(int), batches[-10:]

    return images


def test_a_halved_batch_makes_the_same_images(images):
    (whole, _), (halved, batches) = images(6, 6), images("auto", 2)
    assert batches[-8:] == [6, 3, 1, 1, 1, 1, 1, 1]
    assert len(whole) == len(halved) == 6
    assert np.abs(whole - halved).max() <= 1
    assert np.abs(whole[0] - whole[1]).max() > 5, "seeds count"
