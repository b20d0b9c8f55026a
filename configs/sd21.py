"""Stable Diffusion 2.1 base (512 pixels), one subject, full UNet fine-tuning with prior preservation.

    python -m torchbooth.train --config configs/sd21.py --workdir runs/dog --config.model.source=models/sd21-base \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

Either backend. What the model predicts is read from its scheduler's config: 2.0 base goes with this file too. Memory
with torchbooth, predicted by `torchbooth plan` and not measured on a card: 13.1 GiB in training at 1 + 1
rows (12.9 GiB of it weights, gradients and Adam moments), 11.7 GiB in a preview. Time has not been measured on a GPU,
nor have learning rate and steps been tuned for this model: they are those of configs/sd15.py.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.precision = "bf16"
    config.train.gradient_checkpointing = "block"
    return config
