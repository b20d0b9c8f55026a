"""Choose the values that `auto` stands for: steps, class images and learning rate.

The rules of thumb for one object are: 100 to 200 updates for each photo (here 150, divided by the batch size), 200 to
300 class images (here 200), and a learning rate of 5e-6 for all weights or 1e-4 for LoRA. Prodigy finds the learning
rate itself and gets the factor 1.
"""

import logging
from typing import Any

from booth.config.fields import AUTO
from booth.config.values import set_field

log = logging.getLogger("booth")

STEPS_A_PHOTO, FEWEST_STEPS = 150, 100
CLASS_IMAGES = 200
RATES = {"none": 5e-6, "lora": 1e-4}


def with_numbers(config: Any, photos: int) -> Any:
    """Return a copy of the config with numbers instead of `auto`, and log each number with its reason.

    `photos` is the number of the subject's photos. Two fields keep `auto`, because they follow another field: the alpha
    of adapters and the text encoder's learning rate.
    """
    config = config.copy_and_resolve_references()
    train = config.train
    if train.steps == AUTO:
        set_field(config, "train.steps", max(FEWEST_STEPS, round(STEPS_A_PHOTO * photos / train.batch_size)))
        log.info(
            "train.steps=%d: %d for each of %d photos, divided by %d in a batch",
            train.steps, STEPS_A_PHOTO, photos, train.batch_size,
        )  # fmt: skip
    config.concepts = tuple(
        {name: CLASS_IMAGES if name == "prior.count" and value == AUTO else value
         for name, value in entry.items()} for entry in config.concepts
    )  # fmt: skip
    if config.prior.count == AUTO:
        set_field(config, "prior.count", CLASS_IMAGES)
        log.info("prior.count=%d: as many class images as the recipes use", CLASS_IMAGES)
    if train.learning_rate == AUTO:
        prodigy = train.optimizer == "prodigy"
        set_field(config, "train.learning_rate", 1.0 if prodigy else RATES[config.adapter.kind])
        log.info(
            "train.learning_rate=%g: the rate of the recipes for %s=%s",
            train.learning_rate,
            *(("train.optimizer", "prodigy") if prodigy else ("adapter.kind", config.adapter.kind)),
        )
    return config
