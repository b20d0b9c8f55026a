"""Three subjects for DreamBooth with five pictures each; their pairs of colours never occur in training."""

from drawn_world.individuals import Individual
from drawn_world.world import Scene

SUBJECTS: dict[str, Individual] = {
    # purple with yellow dots and a round head with two antennas
    "robot": Individual("robot", ("purple", "yellow"), "dots", (1, 1, 0), (1.0, 1.0)),
    # orange with green stripes, steam and a face
    "mug": Individual("mug", ("orange", "green"), "stripes", (0, 0, 0), (1.0, 1.0)),
    # green with pink dots and three feathers on its head
    "bird": Individual("bird", ("green", "pink"), "dots", (0, 0, 2), (1.0, 1.0)),
}

# setting, mirrored, scale, x, seed
_SCENES = {
    "robot": (("garden", False, 0.8, 0.5, 11), ("kitchen", True, 0.72, 0.46, 12), ("beach", False, 0.76, 0.55, 13),
              ("city", True, 0.68, 0.52, 14), ("garden", True, 0.84, 0.48, 15)),
    "mug": (("kitchen", False, 0.82, 0.5, 21), ("garden", True, 0.7, 0.45, 22), ("beach", False, 0.76, 0.54, 23),
            ("city", True, 0.68, 0.53, 24), ("kitchen", True, 0.74, 0.47, 25)),
    "bird": (("garden", False, 0.82, 0.5, 31), ("beach", True, 0.7, 0.54, 32), ("city", False, 0.76, 0.5, 33),
             ("kitchen", True, 0.68, 0.46, 34), ("garden", True, 0.8, 0.52, 35)),
}  # fmt: skip


def subject_scenes(name: str) -> tuple[Scene, ...]:
    """Return the scenes of the five pictures of a subject; half of the settings are in none of them."""
    return tuple(Scene(*scene) for scene in _SCENES[name])
