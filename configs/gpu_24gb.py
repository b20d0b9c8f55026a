"""Stable Diffusion 1.5 on one 24 GB GPU (RTX 3090, 4090, A5000): full fine-tuning of UNet and text encoder.

    python -m torchbooth.train --config configs/gpu_24gb.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

bfloat16 with float32 weights and AdamW in full; activations are computed twice. `torchbooth plan` says (predicted from
fake tensors, not measured on a card): 14.6 GiB in training at 1 + 1 rows, 12.0 in previews, 4.3 for class images, so
about 17 GB with what CUDA itself takes. Training the text encoder too gives the best likeness; without it
(`--config.train.text_encoder=false`) there is room for 4 + 4 rows.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.precision = "bf16"
    config.train.text_encoder = True
    config.train.gradient_checkpointing = "block"
    config.prior.batch_size = 4
    return config
