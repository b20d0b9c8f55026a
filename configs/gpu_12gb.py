"""Stable Diffusion 1.5 on one 12 GB GPU with bfloat16 (RTX 3060, 4070): full UNet fine-tuning.

    pip install -e ".[8bit]"
    python -m torchbooth.train --config configs/gpu_12gb.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

bfloat16 with float32 weights; Adam's moments in 8 bits; activations are computed twice. `torchbooth plan` says
(predicted from fake tensors, not measured on a card): 8.2 GiB in training at 1 + 1 rows, 5.9 in previews, 4.3 for class
images, so about 10 GB with what CUDA itself takes.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.precision = "bf16"
    config.train.optimizer = "adamw8bit"
    config.train.gradient_checkpointing = "block"
    config.prior.batch_size = 2
    return config
