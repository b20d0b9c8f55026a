"""What `auto` stands for: steps, class images and learning rate, by the photos and by what trains.

The rules of thumb for one object: 100 to 200 updates a photo (here 150, shared out over the rows of a batch), 200 to
300 class images (here 200), a learning rate of 5e-6 for all weights and of 1e-4 for LoRA, and 1 for Prodigy, which
finds it.
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
    """A copy of the config with numbers in place of each `auto` that is chosen by the photos or by what trains; says
    what was chosen and why. Two stay, as they are what another field is: the alpha of adapters, and the text encoder's
    learning rate."""
    config = config.copy_and_resolve_references()
    train = config.train
    if train.steps == AUTO:
        set_field(config, "train.steps", max(FEWEST_STEPS, round(STEPS_A_PHOTO * photos / train.batch_size)))
        log.info(
            "train.steps=%d: %d for each of %d photos, over %d in a batch",
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
            "train.learning_rate=%g: as the recipes for %s=%s have it",
            train.learning_rate,
            *(("train.optimizer", "prodigy") if prodigy else ("adapter.kind", config.adapter.kind)),
        )
    return config
