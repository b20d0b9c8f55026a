"""The measures of a model: does it show the subject, does it follow the prompt, and is the class unchanged? They decide
which checkpoint is best.

Subject fidelity, prompt fidelity and PRES are those of the DreamBooth paper (arXiv 2208.12242, section 4): mean cosines
between the unit vectors in which a judge (`booth.evaluate.judges`) describes pictures and texts. Diversity is our own
measure: how many different individuals the class prompt still gives (the paper's DIV compares pictures of one subject).
The meaning of a mean cosine depends on the judge, so the score is made of shares between two anchors, which the base
model and the subject's own photos give.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

Measures = dict[str, float]


@dataclass(frozen=True)
class Seen:
    """A judge's description of n pictures, in unit vectors.

    `identity` [n, d], by measure, describes the subject: the first measure decides, the others are only reported.
    `content` [n, e] is compared with texts; it is None for a judge that reads none.
    """

    identity: Mapping[str, np.ndarray]
    content: np.ndarray | None = None

    @property
    def deciding(self) -> np.ndarray:
        return next(iter(self.identity.values()))

    def __getitem__(self, rows: slice) -> "Seen":
        content = None if self.content is None else self.content[rows]
        return Seen({name: vectors[rows] for name, vectors in self.identity.items()}, content)


@dataclass(frozen=True)
class SeenModel:
    """A judge's description of a model's pictures: by the instance prompt, of the subject in settings, of the class."""

    instance: Seen
    settings: Seen
    of_class: Seen


def fidelity(generated: np.ndarray, real: np.ndarray) -> float:
    """Return the mean cosine over all pairs of a generated and a real picture, given as unit vectors [n, d] and [m, d]:
    DINO and CLIP-I of the paper, and PRES for class pictures."""
    return float((generated @ real.T).mean())


def likeness(vectors: np.ndarray) -> float:
    """Return the mean cosine over all pairs of different pictures, given as unit vectors [n, d]; 1 for one picture."""
    if len(vectors) < 2:
        return 1.0
    return float((vectors @ vectors.T)[np.triu_indices(len(vectors), k=1)].mean())


def diversity(vectors: np.ndarray) -> float:
    """Return 1 - likeness of unit vectors [n, d]: 0 if all pictures show the same individual."""
    return 1 - likeness(vectors)


def prompt_fidelity(pictures: np.ndarray, texts: np.ndarray) -> float:
    """Return the mean cosine between each picture and its own text, unit vectors [n, e] both: CLIP-T of the paper."""
    return float((pictures * texts).sum(axis=1).mean())


def of_photos(photos: Seen, texts: np.ndarray | None, prompt_measure: str) -> Measures:
    """Return the anchors that photos give: their likeness to each other, and their prompt fidelity for texts of which
    they show only the subject."""
    found = {name: likeness(vectors) for name, vectors in photos.identity.items()}
    if photos.content is not None and texts is not None:
        found[prompt_measure] = fidelity(photos.content, texts)
    return found


def of_model(
    model: SeenModel, photos: Seen, texts: np.ndarray | None, prompt_measure: str, base: SeenModel
) -> Measures:
    """Return the measures of one model; `base` is the untouched model at the same seeds.

    Of the subject: each measure of `photos.identity`, over all pictures that should show it, and `prompt_measure`, over
    those in settings. Of the class: `pres`, the likeness to the photos (less is better); `like_base`, the mean cosine
    with the base's picture of the same seed; `diversity`, 1 - likeness of the pictures to each other.
    """
    found = {}
    for name, real in photos.identity.items():
        shown = np.concatenate([model.instance.identity[name], model.settings.identity[name]])
        found[name] = fidelity(shown, real)
    if model.settings.content is not None and texts is not None:
        found[prompt_measure] = prompt_fidelity(model.settings.content, texts)
    of_class = model.of_class.deciding
    found["pres"] = fidelity(of_class, photos.deciding)
    found["like_base"] = prompt_fidelity(of_class, base.of_class.deciding)
    found["diversity"] = diversity(of_class)
    return found


def share(value: float, nothing: float, everything: float) -> float | None:
    """Return the position of a value between `nothing` (0) and `everything` (1), clipped to [0, 1].

    Return None if `everything` is not above `nothing`: then the value has no meaning.
    """
    if everything - nothing < 1e-6:
        return None
    return float(np.clip((value - nothing) / (everything - nothing), 0, 1))


SHARES = ("subject", "prompt", "prior")


def shares(model: Measures, base: Measures, photos: Measures, subject_measure: str, prompt_measure: str) -> Measures:
    """Return the shares of a model, each from 0 to 1, and their geometric mean, `score`.

    `subject`: from the base's pictures (0) to photos of the subject (1).
    `prompt`: from pictures that show the subject and nothing of the setting, as the photos do (0), to the base's (1).
    `prior`: the share of the base's diversity that is left, times 1 minus the share of the way that the class pictures
    have moved from the base's towards the subject.
    A share without anchors (no texts are read, or the base is no better than the photos) is left out; without
    `subject` there is no score.
    """
    found = {}
    real, start = photos[subject_measure], base[subject_measure]
    if (learned := share(model[subject_measure], start, real)) is not None:
        found["subject"] = learned
    if prompt_measure in model:
        followed = share(model[prompt_measure], photos[prompt_measure], base[prompt_measure])
        if followed is not None:
            found["prompt"] = followed
    drift = share(model["pres"], base["pres"], real) or 0.0
    variety = share(model["diversity"], 0.0, base["diversity"])
    found["prior"] = (1.0 if variety is None else variety) * (1 - drift)
    if "subject" in found:
        found["score"] = float(np.prod(list(found.values())) ** (1 / len(found)))
    return found


def best(scored: Iterable[tuple[int, Measures]]) -> int | None:
    """Return the step with the highest score, the first of equal ones; None if no score is above 0."""
    found = [(measures.get("score", 0.0), -step) for step, measures in scored]
    score, step = max(found, default=(0.0, 0))
    return -step if score > 0 else None
