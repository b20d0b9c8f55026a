"""Measure whether DreamBooth learns the subject and keeps the class, with the demo's recipe on the example subjects.

    python scripts/check_dreambooth.py --out runs/check --backend torch --seeds 0 1 2
    python scripts/check_dreambooth.py --out runs/check --backend jax --seeds 0
    python scripts/check_dreambooth.py --out runs/check --backend torch --seeds 0 --without-prior

Runs whose scores are already in --out are not repeated. At the end the script prints a table of all results there. It
also writes --out/prior-SUBJECT-BACKEND-SEED.png if the runs with and without prior preservation are there: pictures of
the class prompt from the base and from both runs.
"""

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from dreambooth_scores import (
    FIRST_SEED,
    GUIDANCE,
    IDENTIFIER,
    STEPS,
    Pictures,
    instance_prompt,
    likenesses,
    sample_for,
    scores,
)
from picture_world.captions import caption
from picture_world.subjects import SUBJECTS
from PIL import Image

from booth.commands.cli import main
from booth.common.files import publish, write_text
from booth.config.loading import load_config
from booth.config.trained import trained_networks
from booth.config.values import flatten
from booth.data import pictures
from booth.data.image_file import load_image
from booth.diffusion.backend import load_backend
from booth.evaluate.yardstick import WEIGHTS
from booth.models.embedded import base_path, subject_path
from booth.models.new_tokens import new_tokens
from booth.models.open import open_pipeline
from booth.train import loop

DEMO = Path(__file__).parent.parent / "configs" / "demo.py"
COLUMNS = ("learned", "learned_new", "fidelity", "base_fidelity", "real_fidelity", "setting_right")
COLUMNS += ("prior_kept", "diversity_kept", "class_drift", "class_right", "base_class_right")
COLUMNS += ("in_own_settings", "base_in_own_settings", "seconds", "megabytes")


def claim(out: Path, overrides: list[tuple[str, str]]) -> None:
    """Record recipe and base in `out`. Raise SystemExit if results there were measured with others."""
    pipeline = open_pipeline(base_path())
    recipe = flatten(load_config(DEMO, overrides)) | {
        "base": [pipeline.weights_hash(name) for name in pipeline.family.networks],
        "yardstick": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(),
        "sampling": [STEPS, GUIDANCE, FIRST_SEED],
    }
    text = json.dumps({name: value for name, value in recipe.items() if name != "instance.images"}, indent=1) + "\n"
    note = out / "recipe.txt"
    if not note.exists():
        write_text(note, text)
    elif note.read_text(encoding="utf-8") != text:
        raise SystemExit(f"--out {out} holds results of another recipe or base ({note}); give another folder")


def check(out: Path, backend: str, subject: str, seed: int, prior: bool, overrides: list[tuple[str, str]]) -> None:
    """Train one run and write its scores and pictures to `out`, if they are not there yet."""
    name = f"{subject}-{backend}-{'prior' if prior else 'alone'}-{seed}"
    if (out / f"{name}.json").exists():
        return
    backend_class = load_backend(f"{backend}booth")
    config = load_config(DEMO, overrides)
    config.instance.images = str(subject_path(subject))
    identifier = next(iter(new_tokens(config)), IDENTIFIER)
    config.instance.prompt, config.prior.prompt = instance_prompt(subject, identifier), caption(subject)
    config.prior.images = config.prior.images or str(out / f"class-images-{subject}-{backend}")
    config.train.seed = seed
    config.samples.before_after, config.samples.every_steps = False, 0
    if not prior:
        config.prior.weight = 0.0
    run = loop.train(backend_class, config, out / "runs" / name)
    untouched = _base_pictures(out, subject)
    exported = run.pipeline
    if config.adapter.kind != "none":
        exported = run.path / "merged"
        command = ["export", "--run", str(run.path), "--out", str(exported)]
        assert main(f"{backend}booth", command) == 0
    tuned = sample_for(backend_class, exported, subject, identifier=identifier)
    _save(tuned, out, name)
    rows = (2 if prior else 1) * config.train.batch_size
    cost = {
        "seconds": sum(rows / line["samples_per_s"] for line in run.metrics),
        "megabytes": result_bytes(config, run.path) / 1e6,
    }
    write_text(out / f"{name}.json", json.dumps(scores(untouched, tuned, subject) | cost, indent=1) + "\n")


def result_bytes(config: Any, run: Path) -> int:
    """Return the bytes of a run's result: LoRA and tokens, or the pipeline if whole networks were trained."""
    networks = trained_networks(config)
    folders = ["tokens"] * bool(config.tokens.add) + (
        ["lora" if config.adapter.kind == "lora" else "pipeline"] if networks else []
    )
    return sum(file.stat().st_size for name in folders for file in (run / name).rglob("*.safetensors"))


def _base_pictures(out: Path, subject: str) -> Pictures:
    """Return the base's pictures of a subject's prompts.

    torchbooth makes them once; those of jaxbooth are equal within 1/255.
    """
    kept = out / f"{subject}-base.npz"
    if not kept.exists():
        made = sample_for(load_backend("torchbooth"), base_path(), subject)
        _save(made, out, f"{subject}-base")
        with publish(kept) as staging, staging.open("wb") as file:
            np.savez(file, **asdict(made))
    with np.load(kept) as file:
        loaded: dict[str, Any] = dict(file)
    return Pictures(**loaded | {"settings": tuple(loaded["settings"].tolist())})


def _save(made: Pictures, out: Path, name: str) -> None:
    for kind, columns in (("class_prompt", 12), ("new_settings", 6)):
        images = getattr(made, kind)
        rows = images.reshape(len(images) // columns, columns, *images.shape[1:])
        sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
        pictures.save(Image.fromarray(sheet), out / f"{name}-{kind}.png")


def table(out: Path) -> str:
    """Return a markdown table of all results in `out`: one line a run, and mean and range for each kind of run."""
    lines = ["| run | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    kinds: dict[str, list[dict[str, float]]] = {}
    for path in sorted(out.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        lines.append(f"| {path.stem} | " + " | ".join(f"{values[column]:.2f}" for column in COLUMNS) + " |")
        _, backend, kind, _ = path.stem.rsplit("-", 3)
        kinds.setdefault(f"{backend}-{kind}", []).append(values)
    for kind, rows in kinds.items():
        columns = [np.array([row[column] for row in rows]) for column in COLUMNS]
        cells = (f"{column.mean():.2f} ({column.min():.2f} to {column.max():.2f})" for column in columns)
        lines.append(f"| **{kind}**, {len(rows)} runs | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def prior_picture(out: Path, subject: str, backend: str, seed: int) -> None:
    """Write pictures of the class prompt if they exist for the base and for both runs, with and without prior.

    There are 24 of each, with the same seeds.
    """
    sheets = {
        "the base": f"{subject}-base-class_prompt.png",
        "tuned with prior preservation": f"{subject}-{backend}-prior-{seed}-class_prompt.png",
        "tuned without": f"{subject}-{backend}-alone-{seed}-class_prompt.png",
    }
    if not all((out / name).exists() for name in sheets.values()):
        return
    rows = [
        (f'"{caption(subject)}", {which}', [np.asarray(load_image(out / name))[:128]]) for which, name in sheets.items()
    ]
    pictures.save(pictures.labelled_rows(rows), out / f"prior-{subject}-{backend}-{seed}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--subjects", nargs="+", choices=tuple(SUBJECTS), default=tuple(SUBJECTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--without-prior", action="store_true")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="settings that replace those of the demo"
    )
    arguments = parser.parse_args()
    fields = [item.partition("=")[::2] for item in arguments.set]
    claim(arguments.out, fields)
    for subject in arguments.subjects:
        for seed in arguments.seeds:
            check(arguments.out, arguments.backend, subject, seed, not arguments.without_prior, fields)
            prior_picture(arguments.out, subject, arguments.backend, seed)
    print(table(arguments.out))
    print("\nthe `learned_new` that perfect drawings of other individuals would have:")
    for subject in arguments.subjects:
        print(f"  {subject}: " + ", ".join(f"{kind} {value:.2f}" for kind, value in likenesses(subject).items()))
