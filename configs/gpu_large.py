"""Stable Diffusion 1.5 on one large GPU (80 GB and more, such as H100 and H200): full UNet fine-tuning at 512 pixels.

    python -m jaxbooth.train --config configs/gpu_large.py --workdir runs/dog --config.model.source=models/sd15 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

`python -m torchbooth.train` takes the same. 4 + 4 rows an update, computed in bfloat16, everything kept for the
backward pass. An update has 4 times the rows of configs/sd15.py, so half as many updates show each photo twice as
often. Neither speed nor memory has been measured on such a GPU; `python scripts/benchmark_gpu.py` does it. If memory
runs out: train.gradient_checkpointing=block. On several GPUs: mesh.fsdp = their number.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.train.batch_size = 4
    config.train.steps = 400
    config.train.precision = "bf16"
    config.prior.batch_size = 16
    config.data.encode_batch_size = 16
    return config
