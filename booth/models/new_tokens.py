"""New tokens: words that are added to the tokenizer, each with its own row in the text encoder's table.

`tokens.add` says `TOKEN=INITIALIZER`; the new row begins as a copy of the initializer's. In a training state the new
rows are one tensor beside the table, `ROWS` of the text encoder. It trains alone or together with other tensors, so all
other rows keep every bit. In an export the new rows are at the end of the table.
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

# The layouts of a textual-inversion file: a token and its row -> (key, array). `pipe.load_textual_inversion` takes the
# key of the first layout as the word; with the second it must be told the word. WebUIs take the only tensor of a file,
# and the file's name as the word.
LAYOUTS: Mapping[str, Callable[[str, np.ndarray], tuple[str, np.ndarray]]] = {
    "embedding": lambda token, row: (token, row),
    "emb_params": lambda token, row: ("emb_params", row[None]),  # kohya's: one row of as many as a word may have
}
TABLE = "text_model.embeddings.token_embedding.weight"
ROWS = "text_model.embeddings.token_embedding.added.weight"


def new_tokens(config: Any) -> tuple[str, ...]:
    """Return the new tokens of a config, in order."""
    return tuple(entry.partition("=")[0] for entry in config.tokens.add)


def initial_rows(config: Any, pipeline: PipelineDir) -> np.ndarray | None:
    """Return the initializers' rows of the table, float32 [tokens, width]; None if no token is added.

    Raise UserError for an initializer that is not exactly one token.
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
    """Yield (component, name, array) of the trained weights, for export.

    If new rows are among them, all weights of the text encoder are yielded, with the rows at the end of its table.
    """
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
    """Yield the tensors unchanged, and write each new row among them to a file of its own in the folder.

    Raise UserError if the disk is full.
    """
    for component, name, array in tensors:
        if name == ROWS:
            write_embeddings([folder / file for file in file_names(tokens)], tokens, array)
        yield component, name, array


def set_aside(
    tensors: Iterable[tuple[str, str, np.ndarray]], rows: list[np.ndarray]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the tensors without the new rows, [width] each, which are appended to `rows`."""
    for component, name, array in tensors:
        if name == ROWS:
            rows += list(array)
        else:
            yield component, name, array


def write_embeddings(
    files: Sequence[Path], tokens: Sequence[str], rows: Iterable[np.ndarray], layout: str = "embedding"
) -> None:
    """Write each row, [width], to its own file in float32, in one of LAYOUTS. Raise UserError if the disk is full."""
    for file, token, row in zip(files, tokens, rows, strict=True):
        key, array = LAYOUTS[layout](token, np.ascontiguousarray(row, np.float32))
        write_bytes(file, save({key: array}, {"format": "pt"}))


def files_beside(out: Path, tokens: Sequence[str]) -> list[Path]:
    """Return NAME-saya_token.safetensors for <saya_token>, beside the exported file NAME.safetensors."""
    return [out.with_name(f"{out.stem}-{file}") for file in file_names(tokens)]


def spoken(text: str, tokens: Sequence[str], prefix: str = "") -> str:
    """Return the text with each token replaced by the name of its file, which begins with `prefix`."""
    names = {token: prefix + Path(file).stem for token, file in zip(tokens, file_names(tokens), strict=True)}
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    return re.sub("|".join(longest_first), lambda found: names[found[0]], text) if names else text


def file_names(tokens: Sequence[str]) -> list[str]:
    """Return saya_token.safetensors for <saya_token>; if two names are the same, the token's number precedes each."""
    names = [re.sub(r"\W+", "-", token).strip("-") or "token" for token in tokens]
    places = [f"{place}-" if names.count(name) > 1 else "" for place, name in enumerate(names, start=1)]
    return [f"{place}{name}.safetensors" for place, name in zip(places, names, strict=True)]
