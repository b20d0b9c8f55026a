"""Stable Diffusion 1.5 on a TPU v3-8 (8 cores with 16 GB each): full UNet fine-tuning.

    pip install -e ".[tpu]"
    python -m jaxbooth.train --config configs/tpu_v3.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

8 + 8 rows an update, two on each core. Weights, gradients and Adam moments (12.8 GiB) are shared by the 8 cores
(mesh.fsdp=8), 1.6 GiB on each; the UNet computes in bfloat16. Time and peak memory have not been measured on a TPU.
An update has 8 times the rows of configs/sd15.py, so half as many updates show each photo four times as often.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.batch_size = 8
    config.train.steps = 400
    config.train.precision = "bf16"
    config.mesh.fsdp = 8
    config.prior.batch_size = 8
    config.data.encode_batch_size = 8
    config.checkpoint.every_steps = 100
    return config
