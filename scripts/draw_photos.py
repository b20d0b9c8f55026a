"""Draw five pictures of one toy robot, as input for a run without photos.

python scripts/draw_photos.py --out photos
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIDE = 256
# The same robot in five places: (sky, ground, horizon, centre x, feet y, height).
SCENES = (
    ("#9fd3ff", "#7cc36a", 0.60, 0.50, 0.88, 0.66),
    ("#ffd9a0", "#e8c887", 0.66, 0.36, 0.86, 0.58),
    ("#20264d", "#3a3f5c", 0.62, 0.62, 0.90, 0.70),
    ("#e9eef5", "#ffffff", 0.58, 0.55, 0.84, 0.50),
    ("#d9b99b", "#8a6242", 0.70, 0.45, 0.92, 0.74),
)


def draw_photos(out: Path) -> None:
    """Write robot-0.png to robot-4.png, 256x256 RGB."""
    out.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(SCENES):
        _scene(*scene).save(out / f"robot-{number}.png")


def _scene(sky: str, ground: str, horizon: float, x: float, feet: float, height: float) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), sky)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, horizon * SIDE, SIDE, SIDE), fill=ground)
    picture = picture.filter(ImageFilter.GaussianBlur(3))
    _robot(ImageDraw.Draw(picture), x * SIDE, feet * SIDE, height * SIDE)
    return picture


def _robot(draw: ImageDraw.ImageDraw, x: float, feet: float, height: float) -> None:
    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        """Convert a box from robot coordinates, in heights of the robot: x from -0.5 to 0.5, y from 0 (feet) to 1."""
        return x + left * height, feet - top * height, x + right * height, feet - bottom * height

    draw.ellipse(box(-0.36, 0.03, 0.36, -0.04), fill="#00000040")
    for side in (-1, 1):
        draw.rounded_rectangle(box(0.15 * side - 0.08, 0.22, 0.15 * side + 0.08, 0.0), 4, fill="#35506b")
        draw.rounded_rectangle(box(0.34 * side - 0.06, 0.56, 0.34 * side + 0.06, 0.26), 6, fill="#e39b2d")
    draw.rounded_rectangle(box(-0.27, 0.60, 0.27, 0.18), 10, fill="#d8432f", outline="#8f2519", width=2)
    draw.rounded_rectangle(box(-0.13, 0.50, 0.13, 0.32), 4, fill="#f7e9c8")
    draw.ellipse(box(-0.04, 0.45, 0.04, 0.37), fill="#35506b")
    draw.rounded_rectangle(box(-0.21, 0.88, 0.21, 0.62), 10, fill="#f2c14e", outline="#a87a1c", width=2)
    for side in (-1, 1):
        draw.ellipse(box(0.10 * side - 0.06, 0.81, 0.10 * side + 0.06, 0.69), fill="white")
        draw.ellipse(box(0.10 * side - 0.03, 0.78, 0.10 * side + 0.03, 0.72), fill="#20264d")
    draw.line((*box(0, 0.88, 0, 0.97),), fill="#35506b", width=3)
    draw.ellipse(box(-0.035, 1.0, 0.035, 0.93), fill="#d8432f")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    draw_photos(parser.parse_args().out)
