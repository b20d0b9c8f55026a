"""Stable Diffusion 1.5, one subject, full UNet fine-tuning with prior preservation: the recipe of the paper.

    python -m torchbooth.train --config configs/sd15.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

Either backend. float32 weights, gradients and Adam moments of the 859,520,964 UNet parameters are 12.8 GiB before any
activation, so this is for 24 GB cards; configs/gpu_16gb.py samples in smaller batches. Not yet timed on a GPU.
Objects: as it is. Faces: train.learning_rate=2e-6, train.steps=1200.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.precision = "bf16"
    config.train.gradient_checkpointing = "block"
    return config
