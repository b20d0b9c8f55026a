"""Stable Diffusion 1.5 on one 16 GB GPU with bfloat16 (RTX 30 series or newer): full UNet fine-tuning.

    python -m torchbooth.train --config configs/gpu_16gb.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

Memory, predicted by tracing a training step with fake tensors, not measured on a card: 13.1 GiB for the UNet's weights,
gradients, Adam moments and activations at 1 + 1 rows, and 0.8 GiB for VAE and text encoder. Class images are
sampled in small batches, so that they stay below that, as previews always do.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.precision = "bf16"
    config.train.gradient_checkpointing = "block"
    config.prior.batch_size = 2
    return config
