"""Image folders -> Examples. Bad files are refused by name. How an image is shown is in `booth.data.views`."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from booth.common.errors import UserError
from booth.common.file_names import composed, listed, printable
from booth.data.captions import read_captions
from booth.data.image_file import REDUCED, load_image, reason
from booth.data.image_folder import (
    IMAGE_SUFFIXES,
    find_images,
    folders_with_images,
    is_mask,
    log_lost_masks,
    log_passed_over,
)

log = logging.getLogger("booth")


@dataclass(frozen=True)
class Example:
    """One training image with its caption. `size` is (width, height) in pixels as it is read, after EXIF orientation.

    `mask` is the file that says where the subject is; it may be the image itself. `repeats` is how often the image is
    shown in an epoch; `concept` is the number of its concept in the run; `folder` distinguishes it from images of the
    same name in other folders, and is empty if all are in one folder.
    """

    path: Path
    caption: str
    kind: Literal["instance", "prior"]
    sha256: str
    size: tuple[int, int]
    repeats: int = 1
    concept: int = 0
    folder: str = ""
    mask: Path | None = None

    @property
    def name(self) -> str:
        """The file's name, after its folder's name if that is needed; it does not depend on where the folder is."""
        return composed(f"{self.folder}/{self.path.name}" if self.folder else self.path.name)

    def as_plain(self) -> dict[str, Any]:
        """Return the fields as numbers, texts and lists, which `of_plain` takes."""
        return {**asdict(self), "path": str(self.path), "mask": self.mask and str(self.mask)}

    @staticmethod
    def of_plain(fields: dict[str, Any]) -> "Example":
        mask = fields["mask"] and Path(fields["mask"])
        return Example(**{**fields, "path": Path(fields["path"]), "size": tuple(fields["size"]), "mask": mask})


Size = tuple[int, int]  # (width, height) in pixels


def read_examples(
    paths: Sequence[Path], caption: str, kind: Literal["instance", "prior"], field: str, **known: Any
) -> list[Example]:
    """Decode every file once. Raise UserError that names all files that cannot be read, and the others as fine.

    `known` are further fields of the examples.
    """
    examples, bad, fine, reduced = [], [], [], []
    for path in paths:
        name = printable(path.name)
        try:
            image = load_image(path)
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except Exception as error:  # PIL raises many types, SyntaxError and struct.error among them
            bad.append(f"{name} ({reason(error)})")
        else:
            examples.append(Example(path, caption, kind, sha256, image.size, **known))
            fine.append(name)
            if part := image.info.get(REDUCED):
                reduced.append(f"{name} (1/{part}: {image.width}x{image.height})")
    if bad:
        rest = f"the other {len(fine)} are fine: {', '.join(fine)}" if fine else "no file is readable"
        raise UserError(
            f"{field}: {len(bad)} of {len(paths)} images cannot be read: {', '.join(bad)};"
            f" remove or replace what is named ({rest})"
        )
    if reduced:
        log.info("%s: large JPEGs are read at a reduced size: %s", field, listed(reduced))
    return examples


def instance_examples(
    folder: str, prompt: str, captions: str = "none", column: str = "text", *, masks: bool = False
) -> list[Example]:
    """Return the subject's photos with their captions. Raise UserError if there are none, or if one cannot be read or
    has no caption.

    `captions` and `column` are as in `read_captions`; `masks` is whether images with names of masks are masks.
    """
    paths = [path for path in find_images(folder, "instance.images") if not (masks and is_mask(path))]
    if not paths:
        inside = folders_with_images(folder, "instance.images")
        raise UserError(
            f"instance.images={folder!r} holds no images; "
            + (f"folders in it do: {inside}; give one of them, or put all photos into one" if inside else
               f"put 3 to 12 photos there ({', '.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))})")
        )  # fmt: skip
    log_passed_over(folder, "instance.images")
    if masks:
        log_lost_masks(folder, paths)
    _check_names(paths)
    said = read_captions(Path(folder), paths, captions, column, prompt)
    examples = read_examples(paths, prompt, "instance", "instance.images")
    return [replace(example, caption=caption) for example, caption in zip(examples, said, strict=True)]


def _check_names(paths: Sequence[Path]) -> None:
    """Raise UserError if two files have the same name in two Unicode forms: a run could not tell them apart."""
    same = defaultdict(list)
    for path in paths:
        same[composed(path.name)].append(path)
    if twice := [name for name, of_name in same.items() if len(of_name) > 1]:
        raise UserError(
            f"instance.images: two files are named {listed(twice)}, in two forms of Unicode; rename or remove one"
        )
