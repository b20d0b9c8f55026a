"""Hash the results of a matrix of short runs, to show that a change of the code does not change any result.

python scripts/fingerprints.py --out before           run the matrix; write before/fingerprints.json and run folders
python scripts/fingerprints.py --out after --compare before/fingerprints.json
python scripts/fingerprints.py --out after --backend torch --case lora

Each run trains a tiny model with random weights for a few steps on a few drawn pictures, with the command line. The
script hashes exported weights and configs, LoRA files, embeddings of new tokens, pictures and metrics (without speeds).
Hashes can be compared only on one machine, with one thread and the same installed versions. The exit code is 1 if
hashes differ.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from draw_photos import draw_photos
from make_pipeline import make_pipeline
from PIL import Image

ROOT = Path(__file__).parents[1]
BASE = {
    "train.steps": 4, "train.batch_size": 2, "train.learning_rate": 1e-3, "prior.count": 3, "prior.inference_steps": 2,
    "checkpoint.every_steps": 2, "samples.every_steps": 4, "samples.inference_steps": 2, "samples.before_after": "true",
}  # fmt: skip
LORA = {"adapter.kind": "lora", "adapter.rank": 4}
CONCEPTS = [
    {"instance.images": f"photos-{name}", "instance.prompt": f"a photo of sks {name}",
     "prior.prompt": f"a photo of {name}", "weight": weight} for name, weight in (("dog", 1.0), ("cat", 1.5))
]  # fmt: skip
CASES = {
    "full": {},
    "objective": {"train.loss": "huber", "train.min_snr_gamma": 5, "train.noise_offset": 0.1, "data.flip": "true",
                  "train.lr_schedule": "cosine", "train.lr_warmup_steps": 1},
    "accumulation": {"train.accumulation": 2, "train.gradient_checkpointing": "block"},
    "text-encoder": {"train.text_encoder": "true"},
    "lora": LORA,
    "lora-all-text": {**LORA, "train.text_encoder": "true", "adapter.targets": "attention", "adapter.dropout": 0.1},
    "tokens": {"tokens.add": '["<saya>=girl"]', "instance.prompt": "a photo of <saya> robot", **LORA},
    "ema": {"ema.decay": 0.9},
    "buckets": {"concepts": json.dumps(CONCEPTS), "data.buckets": '["64x48", "64x64", "48x64"]', "train.batch_size": 1},
    "bf16": {"train.precision": "bf16", "export.precision": "fp16"},
    "prodigy": {"train.optimizer": "prodigy", "train.learning_rate": 1.0},
    "resumed": {},  # stopped after two steps and continued; the result must equal that of `full`
}  # fmt: skip
TORCH_ALONE = {
    "rounded": {"train.precision": "bf16", "memory.weights": "bf16", "memory.fused_backward": "true",
                "memory.offload_optimizer": "always"},
    "8-bit": {"train.optimizer": "adamw8bit"},
}  # fmt: skip
HASHED = ("pipeline/**/*", "lora/*", "tokens/*", "samples/**/*.png", "class_images/*.png")


def run(backend: str, case: str, fields: dict[str, object], folder: Path) -> dict[str, str]:
    """Train one case in `folder/BACKEND-CASE` and return {file: hash}."""
    workdir = folder / f"{backend}-{case}"
    for steps in (2, 4) if case == "resumed" else (4,):
        overrides = {**BASE, **fields, "train.steps": steps}
        command = [
            sys.executable, "-m", f"{backend}booth.train", "--config", str(ROOT / "configs" / "smoke.py"),
            "--workdir", workdir.name, "--config.model.source=model", "--config.instance.images=photos",
            *(f"--config.{name}={value}" for name, value in overrides.items()),
        ]  # fmt: skip
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{workdir.name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return hashes(workdir)


def hashes(workdir: Path) -> dict[str, str]:
    """Return {name in the run folder: sha256} of all files that a run made."""
    files = sorted({path for pattern in HASHED for path in workdir.glob(pattern) if path.is_file()})
    made = {path.relative_to(workdir).as_posix(): _sha256(path.read_bytes()) for path in files}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    numbers = [{name: value for name, value in line.items() if name != "samples_per_s"} for line in lines]
    return made | {"metrics.jsonl": _sha256(json.dumps(numbers).encode())}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def draw_inputs(folder: Path) -> None:
    """Write the tiny model and the photos; two subjects have photos in three shapes, for the case with buckets."""
    make_pipeline("tiny", folder / "model")
    draw_photos(folder / "photos")
    photos = sorted((folder / "photos").glob("*.png"))
    for name, picked in {"dog": photos[:3], "cat": photos[3:]}.items():
        (folder / f"photos-{name}").mkdir()
        for number, path in enumerate(picked):
            size = ((90, 60), (64, 64), (50, 80))[number]
            Image.open(path).resize(size).save(folder / f"photos-{name}" / f"{number}.png")


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """Return one line for each file that differs or exists on one side only, for the cases that both sides ran."""
    lines = []
    for case in before.keys() & after.keys():
        for name in sorted(before[case].keys() | after[case].keys()):
            if before[case].get(name) != after[case].get(name):
                there = [side for side, made in (("before", before), ("after", after)) if name in made[case]]
                lines.append(f"{case}: {name} " + ("differs" if len(there) == 2 else f"only {there[0]}"))
    return sorted(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder for inputs, runs and fingerprints.json")
    parser.add_argument("--compare", type=Path, help="fingerprints.json of another version")
    parser.add_argument("--backend", choices=("torch", "jax"), help="default: both")
    parser.add_argument("--case", choices=(*CASES, *TORCH_ALONE), action="append", help="default: all")
    options = parser.parse_args()
    folder = options.out.resolve()
    folder.mkdir(parents=True)
    draw_inputs(folder)
    made = {}
    for backend in (options.backend,) if options.backend else ("torch", "jax"):
        for case, fields in (CASES | (TORCH_ALONE if backend == "torch" else {})).items():
            if not options.case or case in options.case:
                made[f"{backend}-{case}"] = run(backend, case, fields, folder)
                print(f"{backend}-{case}: {len(made[f'{backend}-{case}'])} files", flush=True)
    (folder / "fingerprints.json").write_text(json.dumps(made, indent=1) + "\n")
    for backend in ("torch", "jax"):
        if f"{backend}-resumed" in made and f"{backend}-full" in made:
            assert made[f"{backend}-resumed"] == made[f"{backend}-full"], f"{backend}booth: resuming changes the result"
    if options.compare:
        lines = differences(json.loads(options.compare.read_text()), made)
        print("\n".join(lines) or "all hashes are the same")
        sys.exit(bool(lines))


if __name__ == "__main__":
    main()
