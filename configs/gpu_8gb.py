"""Stable Diffusion 1.5 on one 8 GB GPU with bfloat16 (RTX 3060 Ti, 4060): full UNet fine-tuning.

    pip install -e ".[8bit]"
    python -m torchbooth.train --config configs/gpu_8gb.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

Weights in bfloat16, updated with stochastic rounding, so that no float32 copy is needed; Adam's moments in 8 bits;
activations are computed twice. `torchbooth plan` says (predicted from fake tensors, not measured on a card): 5.1 GiB in
training at 1 + 1 rows, 4.3 in previews, 2.7 for class images, so about 6.3 GB with what CUDA itself takes.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.precision = "bf16"
    config.train.optimizer = "adamw8bit"
    config.train.gradient_checkpointing = "block"
    config.memory.weights = "bf16"
    config.prior.batch_size = 2
    config.data.encode_batch_size = 2
    return config
