"""The judges that look at the pictures of an evaluation: the yardstick of the drawn world, or the user's networks."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from booth.common.errors import UserError
from booth.config.sources import EMBEDDED
from booth.diffusion.backend import load_vision
from booth.evaluate import yardstick
from booth.evaluate.prompts import WORLD
from booth.evaluate.scores import Seen

DINO_ID, CLIP_ID = (
    "facebook/dino-vits16",
    "openai/clip-vit-base-patch32",
)  # hub ids of the networks that DreamBench measures with


class Judge(Protocol):
    """Describes pictures and texts. `prompt_measure` is the name of the comparison with texts, "" for a judge that
    reads none; `recipe` says what the numbers depend on."""

    prompt_measure: str
    recipe: dict[str, str]

    def look(self, pictures: Sequence[np.ndarray]) -> Seen:
        """Describe uint8 pictures [h, w, 3] of any sizes, at least one."""
        ...

    def read(self, texts: Sequence[str]) -> np.ndarray | None:
        """Return the unit vectors [n, e] that a picture's `content` is compared with. Raise UserError for a text that
        the judge does not understand."""
        ...


class Yardstick:
    """A judge that knows only the drawn world. A picture's content is its setting as a one-hot vector, so the mean
    cosine with texts is the share of pictures in the setting that was asked for."""

    prompt_measure = "setting"

    def __init__(self) -> None:
        self.recipe = {"yardstick": hashlib.sha256(yardstick.WEIGHTS.read_bytes()).hexdigest()}

    def look(self, pictures: Sequence[np.ndarray]) -> Seen:
        looks = yardstick.look(pictures)
        names = np.array(looks.setting_names)
        return Seen({"identity": looks.identity}, (names[:, None] == list(WORLD)).astype(np.float32))

    def read(self, texts: Sequence[str]) -> np.ndarray:
        found = [[text.endswith(phrase) for phrase in WORLD.values()] for text in texts]
        if unknown := [text for text, settings in zip(texts, found, strict=True) if not any(settings)]:
            raise UserError(
                f"--settings: {unknown[0]!r} must end with a setting of the drawn world, such as 'in the snow': the"
                " yardstick knows no other; or give --clip"
            )
        return np.array(found, np.float32)


class Networks:
    """A judge of DINO, CLIP, or both; if DINO is given, its measure decides."""

    def __init__(self, dino: Any, clip: Any) -> None:
        self._dino, self._clip = dino, clip
        self.prompt_measure = "clip_t" if clip else ""
        self.recipe = {name: network.sha256 for name, network in (("dino", dino), ("clip", clip)) if network}

    def look(self, pictures: Sequence[np.ndarray]) -> Seen:
        identity = {"dino": self._dino.look(pictures)} if self._dino else {}
        content = self._clip.look(pictures) if self._clip else None
        return Seen(identity if content is None else {**identity, "clip_i": content}, content)

    def read(self, texts: Sequence[str]) -> np.ndarray | None:
        return self._clip.read(texts) if self._clip else None


def judge_of(package: str, dino: str, clip: str, source: str = "") -> Judge:
    """Return the judge that --dino and --clip name; without them, the yardstick if `source` is the embedded base.

    Raise UserError if there is no judge, or if a network cannot be loaded.
    """
    if not dino and not clip:
        if source == EMBEDDED:
            return Yardstick()
        raise UserError(
            f"--dino or --clip is missing: give a folder or hub id of DINO weights ({DINO_ID}), of CLIP weights"
            f" ({CLIP_ID}), or both; the measure that comes with booth knows its drawn world only"
        )
    vision = load_vision(package)
    return Networks(vision.Dino(dino) if dino else None, vision.Clip(clip) if clip else None)
