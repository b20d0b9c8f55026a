"""Stable Diffusion 1.5 on a TPU v5p-8 (4 chips with 95 GB each): full UNet fine-tuning at 512 pixels.

    pip install -e ".[tpu]"
    python -m jaxbooth.train --config configs/tpu_v5p.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

8 + 8 rows an update, four on each chip. Weights and Adam moments are shared by the 4 chips (mesh.fsdp=4), 2.4 GiB on
each; the UNet computes in bfloat16, its attention in the Pallas kernel. An update has 8 times the rows of
configs/sd15.py, so half as many updates show each photo four times as often.

The plan for 32 rows on each chip (train.batch_size=64), which a larger set of photos would be trained with: 33.4 GiB of
95, 3.5e7 cycles a row, 199 samples/s by the TPU compiler's estimates, with the kernels, which it does not estimate, at
40 % of the peak; with the text encoder 34.1 GiB, 3.5e7 cycles, 197 samples/s. No TPU was at hand to measure on.

    jaxbooth plan --config configs/tpu_v5p.py --config.model.source=models/sd15 --config.train.batch_size=64
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.batch_size = 8
    config.train.steps = 400
    config.train.precision = "bf16"
    config.mesh.fsdp = 4
    config.mesh.topology = "v5p:2x2x1"
    config.prior.batch_size = 8
    config.data.encode_batch_size = 8
    config.checkpoint.every_steps = 100
    return config
