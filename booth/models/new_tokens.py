"""New tokens: words that the tokenizer is taught, each with a row of its own in the text encoder's table.

`tokens.add` says `TOKEN=INITIALIZER`; the row begins as the initializer's. In a training state the new rows are one
tensor beside the table, `ROWS` of the text encoder, which trains alone or with whatever else does; so all other rows
stay as they are, to the bit. An export has them at the end of the table.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from booth.common.errors import UserError
from booth.common.files import write_bytes
from booth.models.pipeline import PipelineDir
from booth.models.tokenizer import load_tokenizer

# Of a textual-inversion file: (key, array) of a token and its row. `pipe.load_textual_inversion` takes the first's key
# for the word, of the second it must be told; WebUIs take the only tensor of a file, and the file's name for the word.
LAYOUTS: Mapping[str, Callable[[str, np.ndarray], tuple[str, np.ndarray]]] = {
    "embedding": lambda token, row: (token, row),
    "emb_params": lambda token, row: ("emb_params", row[None]),  # kohya's: one row of as many as a word may have
}
TABLE = "text_model.embeddings.token_embedding.weight"
ROWS = "text_model.embeddings.token_embedding.added.weight"


def new_tokens(config: Any) -> tuple[str, ...]:
    """Return the tokens themselves, in order."""
    return tuple(entry.partition("=")[0] for entry in config.tokens.add)


def initial_rows(config: Any, pipeline: PipelineDir) -> np.ndarray | None:
    """float32 [tokens, width]: the initializers' rows of the table; None if no token is added.

    Raise UserError for an initializer that is not one token.
    """
    if not config.tokens.add:
        return None
    table, tokenizer = pipeline.tensors("text_encoder")[TABLE], load_tokenizer(pipeline)
    rows = []
    for entry in config.tokens.add:
        initializer = entry.partition("=")[2]
        ids = tokenizer.ids(initializer)
        if len(ids) != 1:
            raise UserError(
                f"tokens.add={entry!r}: the initializer {initializer!r} is {len(ids)} tokens to this model, and must be"
                " one; take a shorter, common word"
            )
        rows.append(table[ids[0]].astype(np.float32))
    return np.stack(rows)


def enlarged(
    pipeline: PipelineDir, tensors: Iterable[tuple[str, str, np.ndarray]]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(component, name, array) of what was trained, for export: with new rows among them, all of the text encoder, its
    table enlarged."""
    rows: np.ndarray | None = None
    text = {}
    for component, name, array in tensors:
        if name == ROWS:
            rows = array
        elif component == "text_encoder":
            text[name] = array
        else:
            yield component, name, array
    if rows is not None:
        text = text or {name: array.astype(np.float32) for name, array in pipeline.tensors("text_encoder").items()}
        text[TABLE] = np.concatenate([text[TABLE], rows])
    for name, array in text.items():
        yield "text_encoder", name, array


def keep_embeddings(
    folder: Path, tokens: Sequence[str], tensors: Iterable[tuple[str, str, np.ndarray]]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Return the same tensors; when the new rows come along, each is written to a file of its own in the folder.

    Raise UserError if the disk is full.
    """
    for component, name, array in tensors:
        if name == ROWS:
            write_embeddings([folder / file for file in file_names(tokens)], tokens, array)
        yield component, name, array


def set_aside(
    tensors: Iterable[tuple[str, str, np.ndarray]], rows: list[np.ndarray]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Return the same tensors without the new rows, [width] each, which are put into `rows`."""
    for component, name, array in tensors:
        if name == ROWS:
            rows += list(array)
        else:
            yield component, name, array


def write_embeddings(
    files: Sequence[Path], tokens: Sequence[str], rows: Iterable[np.ndarray], layout: str = "embedding"
) -> None:
    """Each row, [width], in a file of its own, float32, in one of LAYOUTS. Raise UserError if the disk is full."""
    for file, token, row in zip(files, tokens, rows, strict=True):
        key, array = LAYOUTS[layout](token, np.ascontiguousarray(row, np.float32))
        write_bytes(file, save({key: array}, {"format": "pt"}))


def files_beside(out: Path, tokens: Sequence[str]) -> list[Path]:
    """NAME-saya_token.safetensors for <saya_token>, beside the exported file NAME.safetensors."""
    return [out.with_name(f"{out.stem}-{file}") for file in file_names(tokens)]


def spoken(text: str, tokens: Sequence[str], prefix: str = "") -> str:
    """Return the text with the names of the tokens' files, which begin with `prefix`, instead of the tokens."""
    names = {token: prefix + Path(file).stem for token, file in zip(tokens, file_names(tokens), strict=True)}
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    return re.sub("|".join(longest_first), lambda found: names[found[0]], text) if names else text


def file_names(tokens: Sequence[str]) -> list[str]:
    """saya_token.safetensors for <saya_token>; with its place before it, if another would have the same."""
    names = [re.sub(r"\W+", "-", token).strip("-") or "token" for token in tokens]
    places = [f"{place}-" if names.count(name) > 1 else "" for place, name in enumerate(names, start=1)]
    return [f"{place}{name}.safetensors" for place, name in zip(places, names, strict=True)]
