"""A picture for tests that read and show pictures."""

import numpy as np
from PIL import Image


def picture(width=60, height=40):
    """Return an RGB picture that is different in every corner and has waves that a poor resize would flatten."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    waves = 25 + 20 * np.sin(np.arange(width) * 1.5) + 5 * np.sin(np.arange(height) * 1.5)[:, None]
    return Image.fromarray((np.stack([x, y, 200 - x / 2 - y / 2], axis=-1) + waves[..., None]).round().astype(np.uint8))
