"""New tokens: rows of their own beside a text encoder's table."""

from typing import Any

import numpy as np
import torch


class TokenEmbedding(torch.nn.Embedding):
    """A table with new rows, `added`, whose ids follow those of the table."""

    def __init__(self, table: torch.nn.Embedding, rows: torch.Tensor) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, _weight=table.weight)
        self.added = torch.nn.Embedding(len(rows), table.embedding_dim, _weight=rows)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        known = super().forward(ids.clamp(max=self.num_embeddings - 1))
        new = self.added((ids - self.num_embeddings).clamp(min=0))
        return torch.where((ids < self.num_embeddings)[..., None], known, new)


def add(text_encoder: Any, rows: np.ndarray) -> None:
    """Put rows [tokens, width] into the encoder, without gradients."""
    table = TokenEmbedding(text_encoder.get_input_embeddings(), torch.from_numpy(rows))
    text_encoder.set_input_embeddings(table.requires_grad_(False))
