"""Draw the picture world: captioned pictures, and a sheet with every class in every setting.

python scripts/draw_world.py --out world --count 20000 --size 64
"""

import argparse
import json
from pathlib import Path

import numpy as np
from picture_world.captions import example_caption
from picture_world.settings import SETTINGS
from picture_world.world import CLASSES, example, render
from PIL import Image


def draw_world(out: Path, count: int, size: int, seed: int = 0) -> None:
    """Write sheet.png, and `count` pictures 000000.png, ... with captions in metadata.jsonl (file_name, text, ...)."""
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet(size, seed)).save(out / "sheet.png")
    if not count:
        return
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for index in range(count):
            instance, scene = example(seed, index)
            name = f"{index:06d}.png"
            Image.fromarray(render(instance, scene, size)).save(out / name)
            about = {"class": instance.class_name, "setting": scene.setting, "colour": instance.colour_names[0]}
            file.write(json.dumps({"file_name": name, "text": example_caption(instance, scene), **about}) + "\n")


def sheet(size: int, seed: int = 0) -> np.ndarray:
    """Return a sheet with a row a class and a column a setting: uint8 [classes * size, settings * size, 3]."""
    rows = []
    for r, name in enumerate(CLASSES):
        pairs = (example(seed, 1000 * r + c, name, setting) for c, setting in enumerate(SETTINGS))
        rows.append(np.concatenate([render(*pair, size) for pair in pairs], axis=1))
    return np.concatenate(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=0, help="number of pictures besides the sheet")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw_world(arguments.out, arguments.count, arguments.size, arguments.seed)
