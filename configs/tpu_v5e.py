"""Stable Diffusion 1.5 on a TPU v5e-8 (8 chips with 16 GB each): full UNet fine-tuning at 512 pixels.

    pip install -e ".[tpu]"
    python -m jaxbooth.train --config configs/tpu_v5e.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

8 + 8 rows an update, two on each chip. Weights and Adam moments are shared by the 8 chips (mesh.fsdp=8), 1.2 GiB on
each; the UNet computes in bfloat16, its attention in the Pallas kernel. An update has 8 times the rows of
configs/sd15.py, so half as many updates show each photo four times as often.

The plan for 8 rows on each chip (train.batch_size=32), which a larger set of photos would be trained with: 10.0 GiB of
15.8, 6.7e7 cycles a row, 161 samples/s by the TPU compiler's estimates, with the kernels, which it does not estimate,
at 40 % of the peak; with the text encoder 10.7 GiB, 6.8e7 cycles, 149 samples/s. Stable Diffusion 2.1: at 512 pixels
and 8 rows 9.7 GiB, 5.5e7 cycles, 193 samples/s; at 768 (data.resolution=768) and 2 rows on each chip
(train.batch_size=8) 8.4 GiB, 2.3e8 cycles, 47 samples/s. No TPU was at hand to measure on.

    jaxbooth plan --config configs/tpu_v5e.py --config.model.source=models/sd15 --config.train.batch_size=32
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.batch_size = 8
    config.train.steps = 400
    config.train.precision = "bf16"
    config.mesh.fsdp = 8
    config.mesh.topology = "v5e:2x4"
    config.prior.batch_size = 8
    config.data.encode_batch_size = 8
    config.checkpoint.every_steps = 100
    return config
