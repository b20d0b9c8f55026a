"""Stable Diffusion 1.5 on a TPU v3-8 (8 cores with 16 GB each): full UNet fine-tuning at 512 pixels.

    pip install -e ".[tpu]"
    python -m jaxbooth.train --config configs/tpu_v3.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

8 + 8 rows an update, two on each core. Weights and Adam moments are shared by the 8 cores (mesh.fsdp=8), 1.2 GiB on
each; the UNet computes in bfloat16. An update has 8 times the rows of configs/sd15.py, so half as many updates show
each photo four times as often.

The plan for 16 rows on each core (train.batch_size=64), which a larger set of photos would be trained with: 14.2 GiB of
15.5, 1.05e8 cycles a row, 70 samples/s by the TPU compiler's estimates; with the text encoder and 8 rows on each core
9.9 GiB, 1.09e8 cycles, 64 samples/s. Stable Diffusion 2.1: at 512 pixels and 8 rows on each core (train.batch_size=32)
9.8 GiB, 9.1e7 cycles, 77 samples/s; at 768 (data.resolution=768) and 4 rows 11.1 GiB, 3.1e8 cycles, 23 samples/s. No
TPU was at hand to measure on.

    jaxbooth plan --config configs/tpu_v3.py --config.model.source=models/sd15 --config.train.batch_size=64
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.batch_size = 8
    config.train.steps = 400
    config.train.precision = "bf16"
    config.mesh.fsdp = 8
    config.mesh.topology = "v3:2x2"
    config.prior.batch_size = 8
    config.data.encode_batch_size = 8
    config.checkpoint.every_steps = 100
    return config
