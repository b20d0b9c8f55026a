"""Stable Diffusion 1.5, one subject, LoRA with prior preservation: a file of megabytes.

    python -m torchbooth.train --config configs/sd15_lora.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

Either backend. RUN/lora/pytorch_lora_weights.safetensors is for `pipe.load_lora_weights`; for WebUIs

    torchbooth export --run runs/dog --format kohya --out dog.safetensors

The learning rate is the one that the published recipes use; not yet tried with the real model here.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.adapter.kind = "lora"
    config.train.learning_rate = 1e-4
    config.train.precision = "bf16"
    config.train.gradient_checkpointing = "block"
    return config
