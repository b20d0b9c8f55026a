"""Draw the example subjects: five pictures each of a robot, a mug and a bird that the base has never seen.

python scripts/draw_subjects.py --out subjects
"""

import argparse
from pathlib import Path

from picture_world.subjects import SUBJECTS, subject_scenes
from picture_world.world import render
from PIL import Image


def draw_subjects(out: Path, size: int = 256) -> None:
    """Write out/NAME/NAME-0.png to NAME-4.png for every subject, `size` x `size` RGB."""
    for name, instance in SUBJECTS.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(subject_scenes(name)):
            Image.fromarray(render(instance, scene, size)).save(folder / f"{name}-{number}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args()
    draw_subjects(arguments.out, arguments.size)
