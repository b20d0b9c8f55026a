"""New tokens: rows of their own beside a text encoder's table."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbooth.models.layers import Embedding


class TokenEmbedding(nnx.Module):
    """A table with new rows, `added`, whose ids follow those of the table."""

    def __init__(self, table: Embedding, rows: int) -> None:
        self.embedding, self.dtype = table.embedding, table.dtype
        self.added = Embedding(rows, table.embedding.get_value().shape[1], dtype=table.dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.embedding[...]
        rows = len(table)
        # Looked up before the cast, so that the table itself is never copied.
        known = jnp.take(table, jnp.minimum(ids, rows - 1), axis=0).astype(self.dtype)
        return jnp.where(ids[..., None] < rows, known, self.added(jnp.maximum(ids - rows, 0)))


def add(text_encoder: Any, rows: int) -> None:
    """Put so many new rows into the encoder."""
    embeddings = text_encoder.text_model.embeddings
    embeddings.token_embedding = TokenEmbedding(embeddings.token_embedding, rows)
