"""How good a tuned model is, on the picture world: is it the subject, as asked, and is the class still what it was?

After the DreamBooth paper (arXiv 2208.12242, section 4): subject fidelity is its DINO score, the mean similarity over
all pairs of a generated and a real picture; prompt fidelity stands for its CLIP-T; prior preservation for its PRES,
turned round so that more is better. Diversity is our own: how many different individuals the class prompt still gives
(the paper's DIV compares pictures of one subject). What looks at the pictures is `booth.evaluate.yardstick`: it
knows the objects and settings of the picture world and nothing else. Every measure is in [0, 1].
"""

from collections.abc import Sequence

import numpy as np

from booth.evaluate.yardstick import Looks


def subject_fidelity(generated: Looks, real: Looks) -> float:
    """How much the generated pictures show the individual of the real ones: the mean similarity over all pairs.

    0: nothing in common. Real pictures of the subject reach `real_fidelity`. Most of what tells individuals apart is
    their colours: `scripts/check_dreambooth.py` says what others in the subject's colours would score.
    """
    return float(similarity(generated, real).mean())


def real_fidelity(real: Looks) -> float:
    """The fidelity of the real pictures among themselves, without each one's likeness to itself. At least two."""
    return 1 - diversity(real)


def relative_fidelity(tuned: Looks, base: Looks, real: Looks) -> float:
    """How far from the base's pictures (0) to the subject's own (1) the tuned ones have come, cut to [0, 1].

    ValueError if the base's pictures are as near to the real ones as those are to each other: then nothing is measured.
    """
    start, end = subject_fidelity(base, real), real_fidelity(real)
    if end <= start:
        raise ValueError(f"the base's fidelity {start:.3f} must be below the real pictures' own, {end:.3f}")
    return float(np.clip((subject_fidelity(tuned, real) - start) / (end - start), 0, 1))


def class_fidelity(generated: Looks, class_name: str) -> float:
    """The share of pictures whose object is seen to be of this class, such as "robot"; ValueError if it is unknown."""
    _check_known(class_name, generated.classes)
    return float(np.mean([seen == class_name for seen in generated.class_names]))


def prompt_fidelity(generated: Looks, asked: Sequence[str]) -> float:
    """The share of pictures that are seen to be in the setting that each was asked for, such as "beach".

    ValueError for an unknown setting, or another number of them than of pictures.
    """
    for setting in asked:
        _check_known(setting, generated.settings)
    return float(np.mean([seen == setting for seen, setting in zip(generated.setting_names, asked, strict=True)]))


def diversity(generated: Looks) -> float:
    """How different the individuals in the pictures are: 1 - the mean similarity over all pairs.

    0: one and the same individual in all of them, whatever is around it. ValueError for fewer than two pictures.
    """
    if len(generated) < 2:
        raise ValueError(f"{len(generated)} pictures must be at least two")
    pairs = similarity(generated, generated)[np.triu_indices(len(generated), k=1)]
    return float(1 - pairs.mean())


def prior_preservation(tuned: Looks, base: Looks, real: Looks, class_name: str) -> float:
    """How much of the class is left: of pictures that the tuned and the base model make of the class prompt.

    The product of three shares, each 1 where nothing changed: of the base's diversity, of its pictures that are of the
    class, and of the way from the base's pictures to the subject that was not gone. ValueError as `relative_fidelity`.
    """
    variety = diversity(tuned) / max(diversity(base), 1e-6)
    right = class_fidelity(tuned, class_name) / max(class_fidelity(base, class_name), 1e-6)
    return min(1.0, variety) * min(1.0, right) * (1 - relative_fidelity(tuned, base, real))


def similarity(some: Looks, others: Looks) -> np.ndarray:
    """[some, others], from 0 to 1: the cosine between the identities, negative ones cut off."""
    return np.clip(some.identity @ others.identity.T, 0, 1)


def _check_known(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"{name!r} must be one of {', '.join(known)}")
