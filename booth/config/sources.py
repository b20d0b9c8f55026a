"""The ways in which a config names a model or a dataset: folder, file, hub id, page on the hub, or embedded base."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from booth.common.errors import UserError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w", re.ASCII)


_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)


def is_id(source: str) -> bool:
    """Return whether a source is a hub id: it has the form `owner/name`, and no file or folder here has that name."""
    return _ID.fullmatch(source) is not None and not Path(source).exists()


@dataclass(frozen=True)
class Kind:
    """One kind of repository on the hub, and the fields of a config that name such a repository."""

    type: Literal["model", "dataset"]
    source: str
    revision: str
    pages: str  # the beginning of the address of its web pages
    index: str = ""  # the file that every repository of this kind has, if there is one


MODEL = Kind("model", "model.source", "model.revision", "https://huggingface.co/", "model_index.json")


DATASET = Kind("dataset", "instance.images", "instance.revision", "https://huggingface.co/datasets/")


def of_page(source: str, kind: Kind, revision: str | None, option: str = "") -> tuple[str, str]:
    """Return (id, revision) of a model or dataset as the user named it.

    The source may be the address of its page or of the page of a branch, or an id with a slash at the end. Any other
    source is returned as it is. `revision` is what the user gave beside it; None if there is no such setting. Raise
    UserError, which names the `option`, for other pages and for two different revisions.
    """
    where, given = f"{option or kind.source}={source}", revision or ""
    if not (page := _PAGE.match(source)):
        bare = source.rstrip("/")
        return (bare if bare != source and is_id(bare) else source), given
    parts = [unquote(part) for part in re.split(r"[?#]", source[page.end() :])[0].split("/") if part]
    of = parts.pop(0).removesuffix("s") if parts and parts[0] in ("datasets", "spaces") else "model"
    name, rest = "/".join(parts[:2]), parts[2:]
    if of != kind.type:
        raise UserError(f"{where} is the page of a {of}; give a {kind.type}, by its page or as owner/name")
    if not _ID.fullmatch(name):
        raise UserError(f"{where} is not the page of one {kind.type}; give its id, owner/name")
    if rest and (rest[0] in ("blob", "resolve", "raw") or (rest[0] == "tree" and len(rest) > 2)):
        raise UserError(f"{where} is a part of {name}; give that id, or download the part and give its path")
    found = rest[1] if len(rest) == 2 and rest[0] in ("tree", "commit") else ""
    if found and revision is None:
        raise UserError(f"{where} names a revision, which cannot be chosen here; give {name}")
    if found and given not in ("", found):
        raise UserError(f"{where} is of another revision than {kind.revision}={given}; give one of them")
    return name, found or given


EMBEDDED = "embedded"
