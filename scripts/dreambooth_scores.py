"""Scores of a model before and after DreamBooth, measured by the yardstick on the same prompts and seeds."""

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
from booth.diffusion.sampling import ImageRequest, Sampler
from booth.evaluate import scores as measures
from booth.evaluate.judges import Yardstick
from booth.evaluate.scores import Seen, SeenModel
from booth.evaluate.yardstick import look
from booth.models.embedded import subject_path
from booth.models.open import open_pipeline
from booth.models.tokenizer import load_tokenizer

IDENTIFIER = "sks"
STEPS, GUIDANCE, BATCH = 25, 2.0, 16
IDENTITY, SETTING = "identity", Yardstick.prompt_measure  # the yardstick's measures of subject and prompt
FIRST_SEED = 1000  # the measured pictures have other seeds than class images and previews


@dataclass(frozen=True)
class Pictures:
    """Pictures of one model for one subject, uint8 [n, h, w, 3]; `settings` names the settings of `new_settings`."""

    instance_prompt: np.ndarray
    new_settings: np.ndarray
    settings: tuple[str, ...]
    class_prompt: np.ndarray


def instance_prompt(subject: str, identifier: str = IDENTIFIER) -> str:
    """Return the prompt with which the subject's pictures are trained."""
    return f"a photo of a {identifier} {subject}"


def new_settings(subject: str) -> list[str]:
    """Return the settings that none of the subject's own pictures shows."""
    shown = {scene.setting for scene in subject_scenes(subject)}
    return [setting for setting in SETTINGS if setting not in shown]


def real_pictures(subject: str) -> list[np.ndarray]:
    """Return the subject's five pictures, uint8 [256, 256, 3] each."""
    return [np.asarray(load_image(path)) for path in sorted(subject_path(subject).glob("*.png"))]


def sample(
    backend_class: Any, source: Path | str, requests: Sequence[ImageRequest], guidance: float = GUIDANCE
) -> np.ndarray:
    """Return pictures of a pipeline folder, uint8 [n, h, w, 3], made by a backend."""
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
    """Return a model's pictures of its prompts for a subject.

    There are `asked` pictures of the instance prompt, `per_setting` of each new setting and `of_class` of the class
    prompt.
    """
    prompt, settings = (
        instance_prompt(subject, identifier),
        [name for name in new_settings(subject) for _ in range(per_setting)],
    )
    in_settings = [f"{prompt} {SETTINGS[setting].phrase}" for setting in settings]
    prompts = [prompt] * asked + in_settings + [caption(subject)] * of_class
    made = sample(backend_class, source, [ImageRequest(text, FIRST_SEED + seed) for seed, text in enumerate(prompts)])
    return Pictures(made[:asked], made[asked:-of_class], tuple(settings), made[-of_class:])


def scores(base: Pictures, tuned: Pictures, subject: str) -> dict[str, float]:
    """Return the measures of `booth.evaluate.scores` against the subject's own pictures, and those of the class.

    `learned` is how far the tuned pictures of the subject have come from the base's pictures (0) to the subject's own
    (1); `learned_new` is the same for new settings only. `class_drift` and `..._kept` compare the pictures of the class
    prompt with the base's.
    """
    judge = Yardstick()
    own = judge.look(real_pictures(subject))
    texts = judge.read([SETTINGS[setting].phrase for setting in tuned.settings])
    before, after = (_seen(judge, pictures) for pictures in (base, tuned))
    photos = measures.of_photos(own, texts, SETTING)
    start, end = (measures.of_model(model, own, texts, SETTING, before) for model in (before, after))
    shares = measures.shares(end, start, photos, IDENTITY, SETTING)
    return {
        "fidelity": end[IDENTITY],
        "base_fidelity": start[IDENTITY],
        "real_fidelity": photos[IDENTITY],
        "learned": shares["subject"],
        "learned_new": _way(after.settings, before.settings, own),
        "setting_right": end[SETTING],
        "base_setting_right": start[SETTING],
        "prior_kept": shares["prior"],
        "diversity_kept": end["diversity"] / start["diversity"],
        "base_diversity": start["diversity"],
        "class_drift": _way(after.of_class, before.of_class, own),
        **class_scores(base.class_prompt, tuned.class_prompt, subject),
    }


def class_scores(before: np.ndarray, after: np.ndarray, subject: str) -> dict[str, float]:
    """Return two shares of the class prompt's pictures: of those that show the class, and in the subject's settings."""
    shown = {scene.setting for scene in subject_scenes(subject)}
    found = {}
    for prefix, looks in (("", look(after)), ("base_", look(before))):
        found[f"{prefix}class_right"] = float(np.mean([name == subject for name in looks.class_names]))
        found[f"{prefix}in_own_settings"] = float(np.mean([setting in shown for setting in looks.setting_names]))
    return found


def likenesses(subject: str, pictures: int = 24) -> dict[str, float]:
    """Return the `learned_new` that perfect drawings of other individuals in the new settings would have.

    0 stands for drawings of the class and 1 for the subject's own pictures. This shows what a score means.
    """
    judge, rng, mine = Yardstick(), generator(0, 0), SUBJECTS[subject]
    own, settings = judge.look(real_pictures(subject)), new_settings(subject)
    scenes = [sample_scene(rng, settings[number % len(settings)]) for number in range(pictures)]
    others = [sample_instance(subject, rng) for _ in scenes]

    def drawn(change: Callable[[Instance], Instance]) -> Seen:
        return judge.look([render(change(other), scene, 64) for other, scene in zip(others, scenes, strict=True)])

    class_alone = drawn(lambda other: other)
    kinds: dict[str, Callable[[Instance], Instance]] = {
        "the subject itself": lambda other: mine,
        "others with its colours and pattern": lambda other: replace(
            other, colours=mine.colours, pattern=mine.pattern, fineness=mine.fineness
        ),
        "others with its colours": lambda other: replace(other, colours=mine.colours),
        "its shape and pattern in other colours": lambda other: replace(mine, colours=other.colours),
    }
    return {kind: _way(drawn(change), class_alone, own) for kind, change in kinds.items()}


def _seen(judge: Yardstick, pictures: Pictures) -> SeenModel:
    parts = (pictures.instance_prompt, pictures.new_settings, pictures.class_prompt)
    return SeenModel(*(judge.look(list(part)) for part in parts))


def _way(tuned: Seen, base: Seen, own: Seen) -> float:
    """Return how far the tuned pictures have come from the base's pictures (0) to the subject's own (1).

    Raise ValueError if the base's pictures are as near to the subject's as the subject's are to each other.
    """
    value, start = (measures.fidelity(pictures.deciding, own.deciding) for pictures in (tuned, base))
    end = measures.likeness(own.deciding)
    if (way := measures.share(value, start, end)) is None:
        raise ValueError(f"the base's fidelity {start:.3f} must be below the own pictures', {end:.3f}")
    return way
