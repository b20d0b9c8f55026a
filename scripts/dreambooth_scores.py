"""What the yardstick says of a model before and after DreamBooth: the same prompts and seeds from both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from picture_world.captions import caption
from picture_world.identity import Instance, sample_instance
from picture_world.settings import SETTINGS
from picture_world.subjects import SUBJECTS, subject_scenes
from picture_world.world import generator, render, sample_scene
from tqdm import tqdm

from booth.config.values import default_config
from booth.data.image_file import load_image
from booth.data.inputs import load_tokenizer
from booth.diffusion.sampling import ImageRequest, Sampler
from booth.evaluate import world_scores
from booth.evaluate.yardstick import Looks, look
from booth.models.embedded import subject_path
from booth.models.pipeline import open_pipeline

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


def instance_prompt(subject: str, identifier: str = IDENTIFIER) -> str:
    """What the subject's pictures are trained with."""
    return f"a photo of a {identifier} {subject}"


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
    backend_class: Any,
    source: Path | str,
    subject: str,
    asked: int = 24,
    per_setting: int = 6,
    of_class: int = 48,
    identifier: str = IDENTIFIER,
) -> Pictures:
    """The instance prompt `asked` times, each new setting `per_setting` and the class prompt `of_class` times."""
    prompt, settings = (
        instance_prompt(subject, identifier),
        [name for name in new_settings(subject) for _ in range(per_setting)],
    )
    in_settings = [f"{prompt} {SETTINGS[setting].phrase}" for setting in settings]
    prompts = [prompt] * asked + in_settings + [caption(subject)] * of_class
    made = sample(backend_class, source, [ImageRequest(text, FIRST_SEED + seed) for seed, text in enumerate(prompts)])
    return Pictures(made[:asked], made[asked:-of_class], tuple(settings), made[-of_class:])


def scores(base: Pictures, tuned: Pictures, subject: str) -> dict[str, float]:
    """The measures of `booth.evaluate.world_scores`, against the subject's own pictures.

    `learned` is (tuned - base) / (real - base) in subject fidelity over all pictures asked to show the subject, and
    `learned_new` over those in new settings; `..._kept` compare the class prompt's pictures with the base's.
    """
    own = look(real_pictures(subject))
    before, after = _look(base), _look(tuned)
    asked_before, asked_after = (_both(looks[0], looks[1]) for looks in (before, after))
    return {
        "fidelity": world_scores.subject_fidelity(asked_after, own),
        "base_fidelity": world_scores.subject_fidelity(asked_before, own),
        "real_fidelity": world_scores.real_fidelity(own),
        "learned": world_scores.relative_fidelity(asked_after, asked_before, own),
        "learned_new": world_scores.relative_fidelity(after[1], before[1], own),
        "setting_right": world_scores.prompt_fidelity(after[1], tuned.settings),
        "base_setting_right": world_scores.prompt_fidelity(before[1], base.settings),
        "prior_kept": world_scores.prior_preservation(after[2], before[2], own, subject),
        "diversity_kept": world_scores.diversity(after[2]) / world_scores.diversity(before[2]),
        "base_diversity": world_scores.diversity(before[2]),
        "class_drift": world_scores.relative_fidelity(after[2], before[2], own),
        **class_scores(before[2], after[2], subject),
    }


def class_scores(before: Looks, after: Looks, subject: str) -> dict[str, float]:
    """Shares of the class prompt's pictures: of the class, and in settings that the subject's own pictures show."""
    shown = {scene.setting for scene in subject_scenes(subject)}
    return {
        f"{prefix}{name}": value
        for prefix, looks in (("", after), ("base_", before))
        for name, value in (
            ("class_right", world_scores.class_fidelity(looks, subject)),
            ("in_own_settings", float(np.mean([setting in shown for setting in looks.setting_names]))),
        )
    }


def likenesses(subject: str, pictures: int = 24) -> dict[str, float]:
    """What `learned_new` would be if what was generated were perfect drawings, in the new settings, of others than the
    subject: 0 is the class as drawn, 1 the subject's own pictures. It says what a score is worth.
    """
    own, rng, mine = look(real_pictures(subject)), generator(0, 0), SUBJECTS[subject]
    settings = new_settings(subject)
    scenes = [sample_scene(rng, settings[number % len(settings)]) for number in range(pictures)]
    others = [sample_instance(subject, rng) for _ in scenes]

    def drawn(change: Callable[[Instance], Instance]) -> Looks:
        return look([render(change(other), scene, 64) for other, scene in zip(others, scenes, strict=True)])

    class_alone = drawn(lambda other: other)
    kinds: dict[str, Callable[[Instance], Instance]] = {
        "the subject itself": lambda other: mine,
        "others with its colours and pattern": lambda other: replace(
            other, colours=mine.colours, pattern=mine.pattern, fineness=mine.fineness
        ),
        "others with its colours": lambda other: replace(other, colours=mine.colours),
        "its shape and pattern in other colours": lambda other: replace(mine, colours=other.colours),
    }
    return {kind: world_scores.relative_fidelity(drawn(change), class_alone, own) for kind, change in kinds.items()}


def _look(pictures: Pictures) -> tuple[Looks, Looks, Looks]:
    return look(pictures.instance_prompt), look(pictures.new_settings), look(pictures.class_prompt)


def _both(some: Looks, others: Looks) -> Looks:
    scores = ("class_scores", "setting_scores", "identity")
    joined = (np.concatenate([getattr(some, name), getattr(others, name)]) for name in scores)
    return Looks(*joined, some.classes, some.settings)
