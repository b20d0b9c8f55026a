"""Rows of Parquet and Arrow files as the `datasets` library writes them: their columns, and images as they were stored.

Read with pyarrow, in small pieces and without decoding. Nothing of a file is executed: no loading script, no pickle
(pyarrow has not unpickled extension types since 14.0.1).
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from booth.errors import UserError

Kind = Literal["image", "text", "other"]
_AT_ONCE = 16  # rows that are in memory together


def columns(path: Path, where: str) -> dict[str, Kind]:
    """{name: what it holds}. Bytes, and a struct with bytes, are images unless the file says otherwise. UserError."""
    with _opened(path, where) as (schema, _):
        features = _features(schema.metadata or {})
        return {field.name: _kind(field.type, features.get(field.name)) for field in schema}


def rows(path: Path, names: Sequence[str], where: str) -> Iterator[dict[str, Any]]:
    """Each row, with these columns: text as str, images as bytes or {"bytes": ..., "path": ...}; None where there is
    nothing. UserError."""
    with _opened(path, where) as (_, batches):
        for batch in batches(list(names)):
            yield from batch.to_pylist()


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """What `datasets` noted of the columns' types; {} in files of others."""
    try:
        return dict(json.loads(metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def _kind(type_: Any, feature: Any) -> Kind:
    from pyarrow import types

    if types.is_dictionary(type_):
        type_ = type_.value_type
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return "text"
    if types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
        inner = type_.field("bytes").type
    else:
        inner = type_
    stored = types.is_binary(inner) or types.is_large_binary(inner) or types.is_binary_view(inner)
    meant = feature.get("_type") if isinstance(feature, dict) else None  # sounds and films are stored in the same way
    return "image" if stored and meant in (None, "Image", "Value") else "other"


@contextmanager
def _opened(path: Path, where: str) -> Iterator[tuple[Any, Any]]:
    """(schema, columns' names -> record batches) of a file; what pyarrow raises in the block becomes a UserError."""
    import pyarrow  # here: it takes a while, and photos in a folder need none of it
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                yield file.schema_arrow, lambda names: _from_parquet(file, names)
        else:
            with pyarrow.memory_map(str(path)) as source:
                whole = source.read(6) == b"ARROW1"  # of the two formats, the one with an index at its end
                source.seek(0)
                reader = pyarrow.ipc.open_file(source) if whole else pyarrow.ipc.open_stream(source)
                read = (reader.get_batch(n) for n in range(reader.num_record_batches)) if whole else reader
                yield reader.schema, lambda names: (piece for batch in read for piece in _pieces(batch.select(names)))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        words = " ".join(str(error).split())[:200]
        raise UserError(
            f"{where}: {path} cannot be read as {path.suffix[1:].capitalize()} ({words}); write or download it again"
        ) from error


def _from_parquet(file: Any, names: list[str]) -> Iterator[Any]:
    """One group of rows after another: asked for at once, all that was read stays in memory (pyarrow 26)."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(_AT_ONCE, row_groups=[group], columns=names, use_threads=False)


def _pieces(batch: Any) -> Iterator[Any]:
    """An Arrow file is mapped into memory, and only becomes Python's objects in pieces."""
    return (batch.slice(start, _AT_ONCE) for start in range(0, batch.num_rows, _AT_ONCE))
