"""What the yardstick says of a model before and after DreamBooth: the same prompts and seeds from both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from picture_world.captions import caption
from picture_world.settings import SETTINGS
from picture_world.subjects import subject_scenes
from tqdm import tqdm

from booth import evaluate
from booth.config import default_config
from booth.data import load_image
from booth.embedded import subject_path
from booth.pipeline_dir import open_pipeline
from booth.preparation import load_tokenizer
from booth.sampling import ImageRequest, Sampler
from booth.yardstick import Looks, look

IDENTIFIER = "sks"
STEPS, GUIDANCE, BATCH = 25, 2.0, 16
FIRST_SEED = 1000  # of the pictures that are measured: others than the seeds of class images and previews


@dataclass(frozen=True)
class Pictures:
    """Of one model, for one subject; uint8 [n, h, w, 3]. `settings` are those of the pictures in `new_settings`."""

    instance_prompt: np.ndarray
    new_settings: np.ndarray
    settings: tuple[str, ...]
    class_prompt: np.ndarray


def instance_prompt(subject: str) -> str:
    """What the subject's pictures are trained with."""
    return f"a photo of a {IDENTIFIER} {subject}"


def new_settings(subject: str) -> list[str]:
    """The settings that none of the subject's own pictures shows."""
    shown = {scene.setting for scene in subject_scenes(subject)}
    return [setting for setting in SETTINGS if setting not in shown]


def real_pictures(subject: str) -> list[np.ndarray]:
    """The subject's five pictures, uint8 [256, 256, 3] each."""
    return [np.asarray(load_image(path)) for path in sorted(subject_path(subject).glob("*.png"))]


def sample(
    backend_class: Any, source: Path | str, requests: Sequence[ImageRequest], guidance: float = GUIDANCE
) -> np.ndarray:
    """uint8 [n, h, w, 3]: pictures of a pipeline folder, made by a backend."""
    pipeline, backend = open_pipeline(source), backend_class(default_config())
    sampler = Sampler(pipeline, load_tokenizer(pipeline), (64, 64), "dpm++", STEPS, guidance, BATCH)
    made = sampler.images(backend, backend.load(pipeline), requests)
    return np.stack([image for _, image in tqdm(made, desc="sampling", total=len(requests), unit="image")])


def sample_for(
    backend_class: Any, source: Path | str, subject: str, asked: int = 24, per_setting: int = 6, of_class: int = 48
) -> Pictures:
    """The instance prompt `asked` times, each new setting `per_setting` and the class prompt `of_class` times."""
    prompt, settings = instance_prompt(subject), [name for name in new_settings(subject) for _ in range(per_setting)]
    in_settings = [f"{prompt} {SETTINGS[setting].phrase}" for setting in settings]
    prompts = [prompt] * asked + in_settings + [caption(subject)] * of_class
    made = sample(backend_class, source, [ImageRequest(text, FIRST_SEED + seed) for seed, text in enumerate(prompts)])
    return Pictures(made[:asked], made[asked:-of_class], tuple(settings), made[-of_class:])


def scores(base: Pictures, tuned: Pictures, subject: str) -> dict[str, float]:
    """The measures of `booth.evaluate`, against the subject's own pictures.

    `learned` is (tuned - base) / (real - base) in subject fidelity over all pictures asked to show the subject, and
    `learned_new` over those in new settings; `..._kept` compare the class prompt's pictures with the base's.
    """
    own = look(real_pictures(subject))
    before, after = _look(base), _look(tuned)
    asked_before, asked_after = (_both(looks[0], looks[1]) for looks in (before, after))
    return {
        "fidelity": evaluate.subject_fidelity(asked_after, own),
        "base_fidelity": evaluate.subject_fidelity(asked_before, own),
        "real_fidelity": evaluate.real_fidelity(own),
        "learned": evaluate.relative_fidelity(asked_after, asked_before, own),
        "learned_new": evaluate.relative_fidelity(after[1], before[1], own),
        "setting_right": _settings_right(after[1], tuned.settings),
        "base_setting_right": _settings_right(before[1], base.settings),
        "prior_kept": evaluate.prior_preservation(after[2], before[2], own, subject),
        "diversity_kept": evaluate.diversity(after[2]) / evaluate.diversity(before[2]),
        "base_diversity": evaluate.diversity(before[2]),
        "class_drift": evaluate.relative_fidelity(after[2], before[2], own),
        "class_right": evaluate.class_fidelity(after[2], subject),
    }


def _look(pictures: Pictures) -> tuple[Looks, Looks, Looks]:
    return look(pictures.instance_prompt), look(pictures.new_settings), look(pictures.class_prompt)


def _both(some: Looks, others: Looks) -> Looks:
    scores = ("class_scores", "setting_scores", "identity")
    joined = (np.concatenate([getattr(some, name), getattr(others, name)]) for name in scores)
    return Looks(*joined, some.classes, some.settings)


def _settings_right(looks: Looks, asked: Sequence[str]) -> float:
    return float(np.mean([seen == setting for seen, setting in zip(looks.setting_names, asked, strict=True)]))
