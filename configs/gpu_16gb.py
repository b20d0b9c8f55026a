"""Stable Diffusion 1.5 on one 16 GB GPU with bfloat16 (RTX 30 series or newer): full UNet fine-tuning.

    python -m torchbooth.train --config configs/gpu_16gb.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

bfloat16 with float32 weights and AdamW in full; activations are computed twice. `torchbooth plan` says (predicted from
fake tensors, not measured on a card): 13.0 GiB in training at 1 + 1 rows, 10.7 in previews, 4.3 for class images, so
about 15 GB with what CUDA itself takes.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.precision = "bf16"
    config.train.gradient_checkpointing = "block"
    config.prior.batch_size = 2
    return config
