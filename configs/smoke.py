"""Seconds on any CPU: the whole job on a tiny model with random weights. Shows that everything works, learns nothing.

make smoke                      both backends, on pictures it draws
python scripts/make_pipeline.py --size tiny --out demo/tiny
python scripts/draw_photos.py --out demo/photos
python -m torchbooth.train --config configs/smoke.py --workdir runs/smoke
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.model.source = "demo/tiny"
    config.instance.images = "demo/photos"
    config.instance.prompt = "a photo of sks robot"
    config.prior.prompt = "a photo of robot"
    config.prior.count = 4
    config.prior.inference_steps = 4
    config.train.steps = 20
    config.train.learning_rate = 1e-4
    config.data.resolution = 64
    config.checkpoint.every_steps = 10
    config.samples.every_steps = 10
    config.samples.inference_steps = 4
    return config
