"""Stable Diffusion 1.5 on one 6 GB GPU with bfloat16 (RTX 3050, 4050 and laptops): full UNet fine-tuning.

    pip install -e ".[8bit]"
    python -m torchbooth.train --config configs/gpu_6gb.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

As configs/gpu_8gb.py, and each tensor is updated inside the backward pass, as soon as its gradient is there; Adam's
moments wait in the host's memory while previews are made. `torchbooth plan` says (predicted from fake tensors, not
measured on a card): 3.7 GiB in training at 1 + 1 rows, 2.7 in previews and for class images, so about 4.8 GB with what
CUDA itself takes. For 4 GB: `--config.memory.fit=4GB` moves the moments to the host's memory for good.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.precision = "bf16"
    config.train.optimizer = "adamw8bit"
    config.train.gradient_checkpointing = "block"
    config.memory.weights = "bf16"
    config.memory.fused_backward = True
    config.memory.offload_optimizer = "sampling"
    config.prior.batch_size = 1
    config.data.encode_batch_size = 1
    return config
