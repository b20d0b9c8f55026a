"""The measures of a model: is it the subject, as asked, and is the class still what it was? And which model is best?

Subject fidelity, prompt fidelity and PRES are those of the DreamBooth paper (arXiv 2208.12242, section 4): mean cosines
between the unit vectors in which a judge (`booth.evaluate.judges`) describes pictures and texts. Diversity is ours: how
many different individuals the class prompt still gives (the paper's DIV compares pictures of one subject). What a mean
cosine is worth depends on the judge, so the score is made of shares between two anchors that the base model and the
subject's own photos give.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

Measures = dict[str, float]


@dataclass(frozen=True)
class Seen:
    """What a judge sees in n pictures, in unit vectors.

    `identity` [n, d], by measure, says what is shown: the first measure decides, others are only reported. `content`
    [n, e] is compared with texts; None for a judge that reads none.
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
    """What a judge sees in one model's pictures: of the instance prompt, of the subject in settings, of the class."""

    instance: Seen
    settings: Seen
    of_class: Seen


def fidelity(generated: np.ndarray, real: np.ndarray) -> float:
    """Return the mean cosine over all pairs of a generated and a real picture: DINO and CLIP-I of the paper, and its
    PRES of class pictures. Unit vectors [n, d] and [m, d]."""
    return float((generated @ real.T).mean())


def likeness(vectors: np.ndarray) -> float:
    """Return the mean cosine over all pairs of different pictures; of a single one 1. Unit vectors [n, d]."""
    if len(vectors) < 2:
        return 1.0
    return float((vectors @ vectors.T)[np.triu_indices(len(vectors), k=1)].mean())


def diversity(vectors: np.ndarray) -> float:
    """1 - likeness: 0 where all pictures show one and the same. Unit vectors [n, d]."""
    return 1 - likeness(vectors)


def prompt_fidelity(pictures: np.ndarray, texts: np.ndarray) -> float:
    """Return the mean cosine between each picture and its own text: CLIP-T of the paper. Unit vectors [n, e] both."""
    return float((pictures * texts).sum(axis=1).mean())


def of_photos(photos: Seen, texts: np.ndarray | None, prompt_measure: str) -> Measures:
    """Return the anchors that photos give: their likeness to each other, and how far they go with texts of which they
    show nothing but the subject."""
    found = {name: likeness(vectors) for name, vectors in photos.identity.items()}
    if photos.content is not None and texts is not None:
        found[prompt_measure] = fidelity(photos.content, texts)
    return found


def of_model(
    model: SeenModel, photos: Seen, texts: np.ndarray | None, prompt_measure: str, base: SeenModel
) -> Measures:
    """Return the measures of one model, `base` being the untouched one at the same seeds.

    Of the subject: the first of `photos.identity` and its like, over all pictures asked to show it; `prompt_measure`,
    over those in settings. Of the class: `pres`, likeness to the photos (less is better); `like_base`, the mean cosine
    with the base's picture of the same seed; `diversity`, 1 - likeness among themselves.
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
    """Return how far a value is on the way from `nothing` to `everything`, cut to [0, 1].

    None if `everything` is not above `nothing`: then the value says nothing.
    """
    if everything - nothing < 1e-6:
        return None
    return float(np.clip((value - nothing) / (everything - nothing), 0, 1))


SHARES = ("subject", "prompt", "prior")


def shares(model: Measures, base: Measures, photos: Measures, subject_measure: str, prompt_measure: str) -> Measures:
    """Return what of a model counts, each from 0 to 1, and their geometric mean, `score`.

    `subject`: the way from the base's pictures (0) to photos of the subject (1).
    `prompt`: from pictures that show the subject and nothing of the setting, as the photos do (0), to the base's (1).
    `prior`: the share of the base's diversity that is left, times the share of the way from the base's class pictures
    to the subject that was not gone.
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
    """Return the step with the highest score, of equal ones the first; None if there is none above 0."""
    found = [(measures.get("score", 0.0), -step) for step, measures in scored]
    score, step = max(found, default=(0.0, 0))
    return -step if score > 0 else None
