"""The embedded base learns one drawn robot: the whole job, with pictures that mean something, on any CPU.

    make demo                       with torchbooth; `make demo BACKEND=jax` with jaxbooth
    python -m torchbooth.train --config configs/demo.py --workdir demo/robot-torch

Either backend; nothing is downloaded. On two CPU cores torchbooth's takes 2 min 43 s, and about a minute more with the
installation; jaxbooth's about 3 min. RUN/samples/before_after.png shows the robot as the model was shown it, and what
the base and the tuned model make of the same prompts and seeds: the robot in places that none of its pictures show, and
other robots, which should stay as they were.
"""

from booth.config import default_config
from booth.config.sources import EMBEDDED
from booth.models.embedded import subject_path

ROBOT = "a photo of a sks robot"


def get_config():
    config = default_config()
    config.model.source = EMBEDDED
    config.instance.images = str(subject_path("robot"))
    config.instance.prompt = ROBOT
    config.prior.prompt = "a photo of a robot"
    config.prior.count = 64
    config.prior.guidance = 1.5
    config.train.steps = 400
    config.train.batch_size = 4
    config.train.learning_rate = 1e-4
    config.data.resolution = 64
    config.samples.every_steps = 150
    config.samples.before_after = True
    config.samples.guidance = 2.0
    config.samples.images_per_prompt = 4
    config.samples.prompts = (
        ROBOT,
        f"{ROBOT} in the snow",
        f"{ROBOT} at night",
        f"{ROBOT} under water",
        f"{ROBOT} on the moon",
        config.prior.prompt,
    )
    return config
