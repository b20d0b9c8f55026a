"""Stable Diffusion 2.1 (768 pixels, predicts the velocity), one subject, full UNet fine-tuning with prior preservation.

    python -m torchbooth.train --config configs/sd21_768.py --workdir runs/dog --config.model.source=models/sd21 \\
        --config.instance.images=photos --config.instance.prompt="a photo of sks dog" \\
        --config.prior.prompt="a photo of dog"

Either backend; 2.0 for 768 pixels goes with this file too. That the model predicts the velocity is read from its
scheduler's config. Memory with torchbooth, predicted by `torchbooth plan` and not measured on a card:
13.4 GiB in training at 1 + 1 rows (12.9 GiB of it weights, gradients and Adam moments), 11.9 GiB in a preview. Photos
and class images, 2.25 times the pixels of configs/sd21.py, go in smaller batches. Time has not been measured on a GPU,
nor have learning rate and steps been tuned for this model.
"""

from booth.config import default_config


def get_config():
    config = default_config()
    config.data.resolution = 768
    config.data.encode_batch_size = 2
    config.train.precision = "bf16"
    config.train.gradient_checkpointing = "block"
    config.prior.batch_size = 2
    return config
