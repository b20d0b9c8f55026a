"""Stable Diffusion 2.1 base (512 pixels), one subject, full UNet fine-tuning with prior preservation.

    python -m torchbooth.train --config configs/sd21.py --workdir runs/dog --config.model.source=models/sd21-base \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

Either backend. What the model predicts is read from its scheduler's config: 2.0 base goes with this file too. float32
weights, gradients and Adam moments of the 865,910,724 UNet parameters are 12.9 GiB before any activation, and the text
encoder takes 1.3 GiB, so this is for 24 GB cards. Peak memory and time have not been measured on a GPU, nor have
learning rate and steps been tuned for this model: they are those of configs/sd15.py.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.precision = "bf16"
    config.train.gradient_checkpointing = True
    return config
