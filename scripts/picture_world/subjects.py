"""Three subjects for DreamBooth with five pictures each; their colours (`RESERVED`) never occur in training."""

from picture_world.identity import Instance, make_instance
from picture_world.world import Scene

SUBJECTS: dict[str, Instance] = {
    # purple with yellow dots, square-headed with two antennas
    "robot": make_instance("robot", ("purple", "yellow", "green"), "dots", 0.35, (0.5, 0.2, 0.9, -0.3), (0, 1, 2)),
    # orange with blue patches, two handles and cream
    "mug": make_instance("mug", ("orange", "blue", "white"), "patches", 0.15, (0.6, -0.5, 0.2, 0.4), (2, 0, 2)),
    # green with pink stripes, spiky, with a big beak and a fan for a tail
    "bird": make_instance("bird", ("green", "pink", "purple"), "stripes", 0.15, (0.8, -0.4, 0.1, 0.3), (1, 2, 2)),
}

# setting, facing, elevation, scale, x, y, light, seed
_SCENES = {
    "robot": (
        Scene("garden", 0.10, 0.22, 0.78, 0.50, 0.92, -0.8, 11),
        Scene("kitchen", -0.75, 0.30, 0.66, 0.42, 0.88, 0.7, 12),
        Scene("beach", 0.85, 0.18, 0.72, 0.58, 0.91, -0.6, 13),
        Scene("city", -0.30, 0.26, 0.55, 0.60, 0.84, 0.9, 14),
        Scene("bed", 0.45, 0.36, 0.82, 0.47, 0.93, -0.9, 15),
    ),
    "mug": (
        Scene("kitchen", 0.05, 0.30, 0.80, 0.50, 0.91, 0.8, 21),
        Scene("snow", -0.80, 0.24, 0.62, 0.40, 0.87, -0.7, 22),
        Scene("garden", 0.60, 0.36, 0.70, 0.56, 0.90, 0.6, 23),
        Scene("mountain", -0.35, 0.20, 0.56, 0.60, 0.84, -0.9, 24),
        Scene("bed", 0.30, 0.40, 0.74, 0.45, 0.89, 0.9, 25),
    ),
    "bird": (
        Scene("forest", 0.70, 0.22, 0.80, 0.48, 0.91, -0.8, 31),
        Scene("beach", -0.85, 0.28, 0.66, 0.56, 0.88, 0.7, 32),
        Scene("city", 0.10, 0.20, 0.74, 0.50, 0.91, -0.6, 33),
        Scene("snow", -0.35, 0.32, 0.58, 0.42, 0.84, 0.8, 34),
        Scene("kitchen", 0.45, 0.36, 0.84, 0.52, 0.93, 0.9, 35),
    ),
}


def subject_scenes(name: str) -> tuple[Scene, ...]:
    """Return the scenes of the five pictures of a subject."""
    return _SCENES[name]
