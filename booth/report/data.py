"""The content of the page of `booth.report.write`.

Everything is read from the run folder, so that a running job, an old run and a copied run are shown in the same way.
"""

import hashlib
import logging
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from booth.common.errors import UserError
from booth.config import values as settings
from booth.config.changes import changes
from booth.config.choices import PLACE
from booth.config.concepts import Concept, class_folder, concepts_of, has_prior
from booth.config.sources import EMBEDDED
from booth.data.image_dataset import cache_folder
from booth.evaluate import results
from booth.evaluate.judges import CLIP_ID, DINO_ID
from booth.evaluate.results import Evaluation
from booth.train.checkpoints import Checkpoints
from booth.train.metrics import read_metrics
from booth.train.run_folder import checkpoint_folder
from booth.train.run_record import MANIFEST, ORIGINS, Record, read_manifest, read_record

log = logging.getLogger("booth")

_PREVIEW = re.compile(r"step-(\d{6,})\.png")
_LEFT = {
    "pipeline": "the tuned pipeline, for diffusers", "lora": "the LoRA file", "tokens": "files of new tokens",
    "samples": "previews in full size", "checkpoints": "checkpoints to continue from",
    "class_images": "class images", "metrics.jsonl": "the metrics of every step",
    "tensorboard": "the same metrics for tensorboard", "config.json": "settings", "manifest.json": "the run's record",
}  # fmt: skip


@dataclass(frozen=True)
class Album:
    """Pictures of one concept that were in `folder` when the run began; `captions` is {name: its caption or ""}."""

    kind: Literal["instance", "prior"]
    title: str
    prompt: str
    folder: Path
    captions: dict[str, str]


@dataclass(frozen=True)
class Report:
    """The data of one run, which need not be finished."""

    path: Path
    package: str  # the package that trained it
    config: Any
    manifest: dict[str, dict[str, str]]
    metrics: list[dict[str, Any]]
    albums: list[Album]
    previews: dict[int, Path]  # by step
    before_after: Path | None
    checkpoints: list[int]
    evaluation: Evaluation | None  # of checkpoints, by the command `evaluate`

    @property
    def step(self) -> int:
        """The number of finished updates, by metrics or checkpoints."""
        return max([0, *(line["step"] for line in self.metrics[-1:]), *self.checkpoints[-1:]])

    @property
    def rows(self) -> int:
        """The number of rows of an update, instance and class rows together."""
        return (1 + has_prior(self.config)) * self.config.train.batch_size

    def pictures(self, kind: Literal["instance", "prior"]) -> int:
        """Return how many pictures of this kind all concepts have."""
        return sum(len(album.captions) for album in self.albums if album.kind == kind)

    def values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (steps, values) of a metric, for the steps that have a finite value."""
        found = [(line["step"], line[name]) for line in self.metrics if _is_number(line.get(name))]
        return np.array([step for step, _ in found], int), np.array([value for _, value in found], float)

    @property
    def fields(self) -> dict[str, Any]:
        return settings.flatten(self.config)

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """{name: (default, value)} of the settings that differ from their defaults."""
        return changes(settings.flatten(settings.default_config()), self.fields)

    @property
    def origins(self) -> dict[str, dict[str, str]]:
        """{"model": ..., "dataset": ...}: where on the hub they came from; local ones are left out."""
        return {kind.type: self.manifest[name] for kind, name in ORIGINS.items() if self.manifest.get(name)}

    @property
    def files(self) -> dict[str, tuple[str, int]]:
        """{name: (what it is, bytes)} of the files in the run's folder."""
        found = {}
        for name, meaning in _LEFT.items():
            path = self.path / name
            if path.is_dir():
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                found[f"{name}/"] = (meaning, size)
            elif path.is_file():
                found[name] = (meaning, path.stat().st_size)
        return found

    @property
    def commands(self) -> dict[str, str]:
        """{purpose: command for a POSIX shell}."""
        run = self.path.absolute()
        again = [self.package, "train", "--config", run / "config.json", "--workdir", run]
        steps = self.config.train.steps
        prompt = next((album.prompt for album in self.albums if album.prompt), "a photo").replace(PLACE, "").strip(" ,")
        model = ["--model", run / "pipeline"] if (run / "pipeline").is_dir() else ["--run", run]
        best = ["--best"] if self.evaluation and self.evaluation.best is not None else []
        export = [self.package, "export", "--run", run, *best]
        form = "kohya" if self.config.adapter.kind == "lora" else "single-file"
        commands: dict[str, list[Any]] = {
            "Resume": again,
            "Train longer": [*again, f"--config.train.steps={steps + max(1, steps // 2)}"],
            "Sample": [self.package, "sample", *model, "--prompt", prompt, "--seeds", 0, 1, 2, 3, "--out", "pictures"],
            **self._evaluate,
            "Export a checkpoint": [*export, "--out", "exported"],
            "Export for WebUIs": [*export, "--format", form, "--out", f"{run.name}.safetensors"],
            "Write this page again": [self.package, "report", run],
        }
        if self.step >= steps:
            del commands["Resume"]
        return {purpose: shlex.join(map(str, words)) for purpose, words in commands.items()}

    @property
    def _evaluate(self) -> dict[str, list[str | Path]]:
        """Return the command that finds the best checkpoint, if the run has all that it needs."""
        prompt = self.config.instance.prompt
        if self.config.concepts or not prompt or PLACE in prompt or not self.config.prior.prompt:
            return {}
        own = self.config.model.source == EMBEDDED  # the yardstick judges it
        networks = [] if own else ["--dino", DINO_ID, "--clip", CLIP_ID]
        return {"Find the best checkpoint": [self.package, "evaluate", "--run", self.path.absolute(), *networks]}


def gather(run: Path) -> Report:
    """Read a run folder. Raise UserError if it is not one, or if its config.json or manifest.json is damaged."""
    record = read_record(run)
    config = _config(record)
    manifest = read_manifest(run / MANIFEST) if (run / MANIFEST).is_file() else {}
    pictures = [(_PREVIEW.fullmatch(path.name), path) for path in sorted((run / "samples").glob("step-*.png"))]
    before_after = run / "samples" / "before_after.png"
    own = not settings.is_remote(config.checkpoint.dir)
    return Report(
        path=run,
        package=f"{record.backend}booth",
        config=config,
        manifest=manifest,
        metrics=[line for line in read_metrics(run / "metrics.jsonl") if _is_step(line["step"])],
        albums=list(_albums(concepts_of(config), manifest, run / "class_images")),
        previews={int(match[1]): path for match, path in pictures if match},
        before_after=before_after if before_after.is_file() else None,
        evaluation=results.read(run),
        checkpoints=Checkpoints(checkpoint_folder(run, config.checkpoint.dir), record.run_id).steps() if own else [],
    )


def _config(record: Record) -> Any:
    """Return the run's config; ignore settings of another version that this version does not know."""
    config = settings.default_config()
    for name, value in record.config.items():
        try:
            settings.set_field(config, name, value)
        except UserError as error:
            log.warning("ignored in its settings: %s", str(error).partition(";")[0])
    return config


def _albums(
    concepts: tuple[Concept, ...], manifest: Mapping[str, Mapping[str, str]], class_images: Path
) -> Iterator[Album]:
    """Yield, for each concept, its photos and then its class images, as far as the manifest has them."""
    captions = manifest.get("captions", {})
    for place, concept in enumerate(concepts):
        within = f"{place}/" if concept.name else ""
        of = f" of {concept.name}" if concept.name else ""
        instance, prior = concept.config.instance, concept.config.prior
        photos = _named(manifest.get("instance images", {}), within)
        folder = _photo_folder(Path(instance.images), photos)
        photos = {name: str(captions.get(within + name, name)) for name in photos}
        yield Album("instance", f"Instance images{of}", instance.prompt, folder, photos)
        if made := _named(manifest.get("class images", {}), within):
            folder = class_folder(concepts, place, class_images)
            yield Album("prior", f"Class images{of}", prior.prompt, folder, dict.fromkeys(made, ""))


def _named(names: Mapping[str, str], within: str) -> dict[str, str]:
    """Return {name: sha256} of a concept's images. Names that lead out of their folder are left out, since the manifest
    may come from a stranger."""
    found = {Path(name.removeprefix(within)): sha256 for name, sha256 in names.items() if name.startswith(within)}
    return {path.as_posix(): sha256 for path, sha256 in found.items()
            if not path.is_absolute() and ".." not in path.parts}  # fmt: skip


def _photo_folder(source: Path, photos: Mapping[str, str]) -> Path:
    """Return the folder of the photos: `instance.images`, or the folder where this machine has unpacked a dataset."""
    name, sha256 = next(iter(photos.items()), ("", ""))
    for folder in () if not name or (source / name).is_file() else cache_folder().glob("*"):
        file = folder / name
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256:
            return folder
    return source


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # neither NaN nor infinite
