"""The dataset doctor: advice about photos, prompts and settings before a run, in plain words. It never stops a run.

Thresholds were set on 37 photos of seven DreamBench subjects (`docs/developers/log.md`). There sharpness is 14 to 41,
and at most 2 after a Gaussian blur of 3 pixels; two photos of a subject differ in at least 11 bits, two drawings in 3.
"""

import re
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from booth.common.file_names import FileLookup, listed, printable
from booth.common.progress import progress
from booth.config.validation import idle_fields
from booth.data import class_image_files
from booth.data.caption_tables import TABLES
from booth.data.captions import text_files
from booth.data.image_file import load_image
from booth.data.image_folder import is_mask
from booth.data.images import Example, Size
from booth.data.inputs import Inputs
from booth.data.views import covering
from booth.models.tokenizer import Tokenizer

_FEW, _MANY = 3, 30  # photos of one subject under one prompt
ALIKE = 2  # two pictures are alike if their hashes differ in at most this many of 64 bits
BLURRED = 6.0  # standard deviation of the Laplacian at 256 pixels
LEAST_SEEN = 2 / 3  # the smallest share of a picture that a crop should show
MOST_PIECES = 3
COMMON = 20_000  # so many of CLIP's 49,408 tokens are common; they are ordered by frequency in its training texts
_EXAMINED = 200  # the largest number of pictures that are examined


def advice(config: Any, inputs: Inputs) -> Iterator[str]:
    """Yield one line of advice for each thing that should be done differently."""
    for place, concept in enumerate(inputs.concepts):
        photos = [photo for photo in inputs.instances if photo.concept == place]
        for line in _about(concept.config, photos, inputs):
            yield f"{concept.name}: {line}" if concept.name else line
    yield from _same_prompts(inputs)
    yield from _idle(config)


def _about(config: Any, instances: Sequence[Example], inputs: Inputs) -> Iterator[str]:
    """Yield the advice about one concept."""
    photos = instances[:_EXAMINED]
    shown = progress(photos, desc="looking at photos", disable=len(photos) < 20, leave=False)
    small = {photo: _small(photo.path) for photo in shown}
    yield from _count(config, instances)
    yield from _captions(config, instances)
    yield from _size(config, instances)
    yield from _buckets(config, instances, inputs)
    if config.instance.masks != "files" and (masks := [photo for photo in photos if is_mask(photo.path)]):
        yield f"{_names(masks)}: named as masks, and trained on as photos; set instance.masks=files"
    yield from _duplicates(photos, small)
    yield from _blur(small)
    if config.instance.captions == "none":
        for prompt in dict.fromkeys(photo.caption for photo in photos):
            yield from _prompts(config, prompt, inputs.tokenizer)
    if config.prior.weight > 0 and config.prior.images:
        yield from _class_images(config, small)


def _idle(config: Any) -> Iterator[str]:
    """Yield one line for all settings that have no effect for the same reason."""
    settings: dict[str, list[str]] = {}
    for idle in idle_fields(config):
        settings.setdefault(idle.why, []).append(idle.setting)
    for why, members in settings.items():
        yield f"{', '.join(members)}: no effect, as {why}"


def _same_prompts(inputs: Inputs) -> Iterator[str]:
    said: dict[str, set[int]] = {}
    for photo in inputs.instances:
        said.setdefault(photo.caption, set()).add(photo.concept)
    for prompt, places in said.items():
        if len(places) > 1:
            names = " and ".join(inputs.concepts[place].name for place in sorted(places))
            yield f"{names} have the same prompt, {prompt!r}: give each subject an identifier of its own"


def _count(config: Any, photos: Sequence[Example]) -> Iterator[str]:
    if len(photos) < _FEW:
        yield f"{len(photos)} photo{'s' * (len(photos) != 1)}: {_FEW} to 12 from several sides and places teach more"
    if len(photos) > _MANY and config.instance.captions == "none":
        yield f"{len(photos)} photos with one prompt: captions (instance.captions) would tell what differs in them"


def _captions(config: Any, photos: Sequence[Example]) -> Iterator[str]:
    settings = config.instance
    if settings.captions == "none":
        folders = sorted({photo.path.parent for photo in photos})
        texts = FileLookup((path for folder in folders for path in text_files(folder)), attrgetter("stem"))
        beside = sorted({path for photo in photos for path in texts.find(photo.path.stem)})
        tables = [path for folder in folders
                  for name in TABLES if _begins_with(path := folder / name, settings.caption_column)]  # fmt: skip
        for files, source in ((beside, "text"), (tables, "metadata")):
            if files:
                names = listed([path.name for path in files])
                yield f"{names}: captions lie with the photos and are not read; set instance.captions={source}"
    orders, kept = settings.shuffled_captions, settings.kept_tags
    most = max((sum(bool(tag.strip()) for tag in photo.caption.split(",")) for photo in photos), default=0)
    if orders and most < kept + 2:
        yield (
            f"instance.shuffled_captions={orders}: no caption has two tags to shuffle, between commas, beside the first"
            f" {kept} (instance.kept_tags)"
        )


def _begins_with(table: Path, column: str) -> bool:
    """Return whether the table exists and its first line names the column."""
    if not table.is_file():
        return False
    with table.open(encoding="utf-8-sig", errors="replace") as file:
        return re.search(rf"(?<!\w){re.escape(column)}(?!\w)", file.readline(100_000)) is not None


def _size(config: Any, photos: Sequence[Example]) -> Iterator[str]:
    half = [photo for photo in photos if 2 * min(photo.size) < config.data.resolution]
    if half:
        yield f"{_names(half)}: less than half of data.resolution={config.data.resolution}, so they will teach blur"
    long = [photo for photo in photos if max(photo.size) > 2 * min(photo.size)]
    if long and config.data.crop == "center" and not config.data.buckets:
        yield (
            f"{_names(long)}: more than twice as long as wide, and only the middle is seen; set data.buckets=auto, or"
            " crop them yourself"
        )


def _buckets(config: Any, photos: Sequence[Example], inputs: Inputs) -> Iterator[str]:
    if not config.data.buckets:
        return
    cut = [photo for photo in photos if _seen(photo.size, inputs.size_of(photo)) < LEAST_SEEN]
    if cut:
        yield f"{_names(cut)}: less than two thirds are seen, as no size in data.buckets has such a shape; add one"


def _seen(size: Size, shown: Size) -> float:
    """Return the share of a picture that is left when it is scaled to cover a size and cropped to it."""
    whole = covering(size, shown)
    return shown[0] * shown[1] / (whole[0] * whole[1])


def _duplicates(photos: Sequence[Example], small: dict[Example, np.ndarray]) -> Iterator[str]:
    same: dict[str, list[Example]] = {}
    for photo in photos:
        same.setdefault(photo.sha256, []).append(photo)
    for group in same.values():
        if len(group) > 1:
            yield f"{_names(group)}: the same file, which would count {len(group)} times"
    firsts = [group[0] for group in same.values()]
    for place, one in enumerate(firsts):
        for other in firsts[place + 1 :]:
            if difference(small[one], small[other]) <= ALIKE:
                yield f"{_names([one, other])}: nearly the same picture; keep the better one"


def _blur(small: dict[Example, np.ndarray]) -> Iterator[str]:
    if blurred := [photo for photo, grey in small.items() if sharpness(grey) < BLURRED]:
        yield f"{_names(blurred)}: blurred, and the model would learn that"


def _prompts(config: Any, prompt: str, tokenizer: Tokenizer) -> Iterator[str]:
    said, of_class = _words(prompt), _words(config.prior.prompt)
    if config.prior.weight > 0 and of_class and of_class[-1] not in said:
        yield f"instance.prompt has no {of_class[-1]!r}, the class noun of prior.prompt: say what the subject is"
    new = {entry.partition("=")[0] for entry in config.tokens.add}
    for word in said:
        if config.prior.weight == 0 or word in of_class or word in new:
            continue
        ids = tokenizer.ids(word)
        if len(ids) > MOST_PIECES:
            yield f"the identifier {word!r} is {len(ids)} tokens to this model: a short rare word is learned faster"
        if len(ids) == 1 and tokenizer.size >= 2 * COMMON and ids[0] < COMMON:
            yield f"the identifier {word!r} is a common word, whose meaning would be lost: take a rare one, such as sks"


def _class_images(config: Any, small: dict[Example, np.ndarray]) -> Iterator[str]:
    for path in class_image_files.own_images(Path(config.prior.images))[:_EXAMINED]:
        grey = _small(path)
        if alike := [photo for photo, other in small.items() if difference(grey, other) <= ALIKE]:
            yield f"class image {path.name} looks like {_names(alike)}: class images should show others of the class"


def _small(path: Path) -> np.ndarray:
    """Return a picture in grey, float32 [h, w] from 0 to 255, with a short side of at most 256 pixels."""
    image = load_image(path).convert("L")
    image.thumbnail((2048, 2048))
    scale = min(1.0, 256 / min(image.size))
    size = (max(8, round(image.size[0] * scale)), max(8, round(image.size[1] * scale)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    """Return in how many of 64 bits the difference hashes of two grey pictures differ."""
    return int(np.count_nonzero(_hash(one) != _hash(other)))


def _hash(grey: np.ndarray) -> np.ndarray:
    """Return, for each of 8x8 places, whether it is darker than its right neighbour."""
    tiny = np.asarray(Image.fromarray(grey).resize((9, 8), Image.Resampling.BOX))
    return tiny[:, :-1] < tiny[:, 1:]


def sharpness(grey: np.ndarray) -> float:
    """Return the standard deviation of the Laplacian, which is small for a picture without sharp edges."""
    inner = grey[1:-1, 1:-1]
    return float((4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]).std())


def _words(prompt: str) -> list[str]:
    return re.findall(r"[^\s,.;:!?]+", prompt.lower())


def _names(photos: Sequence[Example]) -> str:
    return ", ".join(printable(photo.name) for photo in photos)
