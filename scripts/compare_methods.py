"""Full fine-tuning, LoRA, a new token alone and pivotal tuning side by side, on the embedded base.

    python scripts/compare_methods.py --out runs/methods --subjects robot --seeds 0

Each is a run of `check_dreambooth.py`, with its measures: fidelity and prior, and what it costs in time and megabytes.
What is in --out already is not done again; at the end the table of all.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from check_dreambooth import check, claim
from picture_world.subjects import SUBJECTS

LORA = [("adapter.kind", "lora"), ("train.learning_rate", "2e-3")]
TOKEN = [("tokens.add", "<sks>=robot"), ("tokens.learning_rate", "1e-2")]
METHODS = {
    "full fine-tuning": [],
    "LoRA, attention": LORA,
    "LoRA, attention, 800 steps": [*LORA, ("train.steps", "800")],
    "LoRA, attention and feed-forward": [*LORA, ("adapter.targets", "feed_forward")],
    "LoRA, all layers": [*LORA, ("adapter.targets", "all")],
    "token alone": [*TOKEN, ("train.unet", "false")],
    "pivotal: token and LoRA, attention and feed-forward": [*TOKEN, *LORA, ("adapter.targets", "feed_forward")],
    "pivotal: token and UNet": TOKEN,
}
COLUMNS = ("fidelity", "learned", "learned_new", "setting_right", "prior_kept", "class_right", "seconds", "megabytes")


def table(out: Path) -> str:
    """A markdown table: of each method the means over its runs."""
    lines = ["| method | runs | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for method in METHODS:
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder(out, method).glob("*.json"))]
        if rows:
            means = (f"{np.mean([row[column] for row in rows]):.2f}" for column in COLUMNS)
            lines.append(f"| {method} | {len(rows)} | " + " | ".join(means) + " |")
    return "\n".join(lines)


def folder(out: Path, method: str) -> Path:
    """Where a method's runs are."""
    return out / method.replace(" ", "-").replace(":", "").replace(",", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--subjects", nargs="+", choices=tuple(SUBJECTS), default=["robot"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    arguments = parser.parse_args()
    for method in arguments.methods:
        for subject in arguments.subjects:
            class_images = ("prior.images", str(arguments.out / f"class-images-{subject}-{arguments.backend}"))
            overrides = [(name, value.replace("robot", subject)) for name, value in METHODS[method]]
            for seed in arguments.seeds:
                claim(folder(arguments.out, method), overrides)
                check(folder(arguments.out, method), arguments.backend, subject, seed, True, [*overrides, class_images])
    print(table(arguments.out))
