"""Does DreamBooth learn the subject and keep the class? The demo's recipe on the example subjects, measured.

    python scripts/check_dreambooth.py --out check --backend torch --seeds 0 1 2
    python scripts/check_dreambooth.py --out check --backend jax --seeds 0
    python scripts/check_dreambooth.py --out check --backend torch --seeds 0 --without-prior

About two minutes a run on two CPU cores. Runs whose scores are in --out already are not done again. At the end the
table of all that is in --out; and --out/prior-SUBJECT.png: the class prompt from the base, with prior preservation and
without, once both are there.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from dreambooth_scores import Pictures, instance_prompt, sample_for, scores
from picture_world.captions import caption
from PIL import Image

from booth import loop, pictures
from booth.cli import load_backend
from booth.config import load_config
from booth.embedded import base_path, subject_path
from booth.rundir import publish, write_text

DEMO = Path(__file__).parent.parent / "configs" / "demo.py"
COLUMNS = ("learned", "learned_new", "fidelity", "base_fidelity", "real_fidelity", "setting_right")
COLUMNS += ("prior_kept", "diversity_kept", "class_drift", "class_right")


def check(out: Path, backend: str, subject: str, seed: int, prior: bool, overrides: list[tuple[str, str]]) -> None:
    """Trains one run and writes its scores and class pictures to `out`, if they are not there yet."""
    name = f"{subject}-{backend}-{'prior' if prior else 'alone'}-{seed}"
    if (out / f"{name}.json").exists():
        return
    backend_class = load_backend(f"{backend}booth")
    config = load_config(DEMO, overrides)
    config.instance.images = str(subject_path(subject))
    config.instance.prompt, config.prior.prompt = instance_prompt(subject), caption(subject)
    config.prior.images = str(out / f"class-images-{subject}-{backend}")
    config.train.seed = seed
    config.samples.before_after, config.samples.every_steps = False, 0
    if not prior:
        config.prior.weight = 0.0
    run = loop.train(backend_class, config, out / "runs" / name)
    base = _base_pictures(out, subject)
    tuned = sample_for(backend_class, run.pipeline, subject)
    for kind in ("class_prompt", "new_settings"):
        _save(out / f"{name}-{kind}.png", getattr(tuned, kind))
    write_text(out / f"{name}.json", json.dumps(scores(base, tuned, subject), indent=1) + "\n")


def _base_pictures(out: Path, subject: str) -> Pictures:
    """The base's pictures of a subject's prompts, made once by torchbooth: jaxbooth's are the same within 1/255."""
    kept = out / f"{subject}-base.npz"
    if not kept.exists():
        made = sample_for(load_backend("torchbooth"), base_path(), subject)
        _save(out / f"{subject}-base-class_prompt.png", made.class_prompt)
        with publish(kept) as staging, staging.open("wb") as file:
            np.savez(file, **asdict(made))
    loaded = dict(np.load(kept))
    return Pictures(**loaded | {"settings": tuple(loaded["settings"].tolist())})


def _save(path: Path, images: np.ndarray, columns: int = 12) -> None:
    rows = [np.concatenate(list(images[start : start + columns]), axis=1) for start in range(0, len(images), columns)]
    rows = [row for row in rows if row.shape == rows[0].shape]
    with publish(path) as staging:
        Image.fromarray(np.concatenate(rows)).save(staging, format="PNG")


def table(out: Path) -> str:
    """A markdown table: a line a run, and mean and spread of each kind of run."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))}
    lines = ["| run | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    kinds: dict[str, list[dict[str, float]]] = {}
    for name, values in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{values[column]:.2f}" for column in COLUMNS) + " |")
        _, backend, kind, _ = name.rsplit("-", 3)
        kinds.setdefault(f"{backend}-{kind}", []).append(values)
    for kind, rows in kinds.items():
        columns = [np.array([row[column] for row in rows]) for column in COLUMNS]
        cells = (f"{column.mean():.2f} ({column.min():.2f} to {column.max():.2f})" for column in columns)
        lines.append(f"| **{kind}**, {len(rows)} runs | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def prior_picture(out: Path, subject: str, seed: int, backend: str) -> None:
    """The class prompt at the same seeds: base, with prior preservation, without."""
    names = {
        "the base": f"{subject}-base-class_prompt.png",
        "tuned, with prior preservation": f"{subject}-{backend}-prior-{seed}-class_prompt.png",
        "tuned, without": f"{subject}-{backend}-alone-{seed}-class_prompt.png",
    }
    if not all((out / name).exists() for name in names.values()):
        return
    sheets = [np.asarray(Image.open(out / name))[:128] for name in names.values()]
    captions = [f'"{caption(subject)}": {which}' for which in names]
    with publish(out / f"prior-{subject}.png") as staging:
        pictures.grid(sheets, captions, columns=1).save(staging, format="PNG")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", choices=("torch", "jax"), default="torch")
    parser.add_argument("--subjects", nargs="+", default=["robot", "mug", "bird"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--without-prior", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="other values than the demo's")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    fields = [tuple(item.split("=", 1)) for item in arguments.set]
    for subject in arguments.subjects:
        for seed in arguments.seeds:
            check(arguments.out, arguments.backend, subject, seed, not arguments.without_prior, fields)
        prior_picture(arguments.out, subject, 0, arguments.backend)
    print(table(arguments.out))
