"""Compare full fine-tuning, LoRA, a new token alone and pivotal tuning on the embedded base.

    python scripts/compare_methods.py --out runs/methods --subjects robot --seeds 0
    python scripts/compare_methods.py --out runs/methods --speed

Each method is a run of `check_dreambooth.py`, which measures fidelity, prior, time and megabytes. Results that are
already in --out are not made again. At the end the script prints the table of all results. With --speed it only trains
30 steps of each method in three rounds, and prints the medians of the speeds and of their ratios to full fine-tuning in
the same round.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from check_dreambooth import DEMO, check, claim
from dreambooth_scores import IDENTIFIER, instance_prompt
from picture_world.captions import caption
from picture_world.subjects import SUBJECTS

from booth.config.loading import load_config
from booth.diffusion.backend import load_backend
from booth.models.embedded import subject_path
from booth.models.new_tokens import new_tokens
from booth.train import loop

LORA = [("adapter.kind", "lora"), ("train.learning_rate", "2e-3"), ("adapter.targets", "feed_forward")]
TOKEN = [("tokens.add", "<sks>=robot"), ("tokens.learning_rate", "1e-2")]
METHODS = {
    "full fine-tuning": [],
    "LoRA, attention": [*LORA, ("adapter.targets", "attention")],
    "LoRA, attention, 800 steps": [*LORA, ("adapter.targets", "attention"), ("train.steps", "800")],
    "LoRA, attention and feed-forward": LORA,
    "LoRA, all layers": [*LORA, ("adapter.targets", "all")],
    "token alone": [*TOKEN, ("train.unet", "false")],
    "pivotal: token and LoRA, attention and feed-forward": [*TOKEN, *LORA],
    "pivotal: token and UNet": TOKEN,
}
COLUMNS = ("fidelity", "learned", "learned_new", "setting_right", "prior_kept", "class_right", "seconds", "megabytes")


def table(out: Path) -> str:
    """Return a markdown table with the means of each method over its runs."""
    lines = ["| method | runs | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for method in METHODS:
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder(out, method).glob("*.json"))]
        if rows:
            means = (f"{np.mean([row[column] for row in rows]):.2f}" for column in COLUMNS)
            lines.append(f"| {method} | {len(rows)} | " + " | ".join(means) + " |")
    return "\n".join(lines)


def speeds(backend: str, subject: str) -> str:
    """Return a markdown table of samples per second and their ratio to full fine-tuning, as medians of three rounds."""
    measured: dict[str, list[float]] = {method: [] for method in METHODS if "800" not in method}
    for _ in range(3):
        for method, runs in measured.items():
            fields = [*METHODS[method], ("train.steps", "30"), ("prior.count", "4"), ("samples.every_steps", "0")]
            config = load_config(DEMO, fields)
            config.samples.before_after = False
            config.instance.images = str(subject_path(subject))
            identifier = next(iter(new_tokens(config)), IDENTIFIER)
            config.instance.prompt, config.prior.prompt = instance_prompt(subject, identifier), caption(subject)
            with TemporaryDirectory() as folder:
                run = loop.train(load_backend(f"{backend}booth"), config, Path(folder) / "run")
            runs.append(float(np.median([line["samples_per_s"] for line in run.metrics[10:]])))
    full = np.array(measured["full fine-tuning"])
    lines = ["| method | samples/s | of full fine-tuning |", "|---|---|---|"]
    for method, runs in measured.items():
        ratios = np.array(runs) / full
        lines.append(
            f"| {method} | {np.median(runs):.1f} | {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f}) |"
        )
    return "\n".join(lines)


def folder(out: Path, method: str) -> Path:
    """Return the folder of a method's runs."""
    return out / method.replace(" ", "-").replace(":", "").replace(",", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--subjects", nargs="+", choices=tuple(SUBJECTS), default=["robot"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--speed", action="store_true", help="measure only the speeds")
    arguments = parser.parse_args()
    if arguments.speed:
        print(speeds(arguments.backend, arguments.subjects[0]))
        raise SystemExit
    for method in arguments.methods:
        for subject in arguments.subjects:
            class_images = ("prior.images", str(arguments.out / f"class-images-{subject}-{arguments.backend}"))
            overrides = [(name, value.replace("robot", subject)) for name, value in METHODS[method]]
            for seed in arguments.seeds:
                claim(folder(arguments.out, method), overrides)
                check(folder(arguments.out, method), arguments.backend, subject, seed, True, [*overrides, class_images])
    print(table(arguments.out))
