"""Prompts -> token ids, with the pipeline's own tokenizer."""

import logging
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from booth.common.errors import UserError, reading
from booth.models.pipeline import PipelineDir

log = logging.getLogger("booth")


class Tokenizer:
    """The CLIP tokenizer of a pipeline folder; pads to `length` with the tokenizer's own pad token.

    Raise UserError if its files cannot be read or make no usable tokenizer, for example one with ids of `vocabulary`
    or more, the size of the text encoder's table.
    """

    def __init__(self, path: Path, length: int, vocabulary: int = 2**31, added: Sequence[str] = ()) -> None:
        """Read the files and add the new tokens `added`, whose ids begin at `vocabulary`."""
        # transformers takes over a second to import; CLIPTokenizer (unlike AutoTokenizer) does not import torch.
        from transformers import CLIPTokenizer

        self._path, self._length, self._vocabulary = path, length, vocabulary
        self._warned: set[str] = set()
        with self._explained():
            self._tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        if added:
            self._add(added)
        self(["a photo"])

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Return the ids, int32 [prompts, length]. A longer prompt is cut, with one warning that quotes the lost part.

        Raise UserError for bytes that are not UTF-8.
        """
        for prompt in prompts:
            if re.search(r"[\ud800-\udfff]", prompt):
                raise UserError(f"the prompt {prompt!r} is not all UTF-8; write it again")
        with self._explained():
            for prompt in prompts:
                if prompt not in self._warned:
                    self._warn_if_cut(prompt)
            encoded = self._tokenizer(list(prompts), padding="max_length", truncation=True, max_length=self._length)
            ids = np.asarray(encoded["input_ids"], np.int64)
            if ids.shape != (len(prompts), self._length):
                raise ValueError(f"it makes ids of shape {ids.shape} for {len(prompts)} prompts of {self._length}")
            if ids.max(initial=0) >= self._vocabulary:
                raise ValueError(f"it makes token {ids.max()}, and the text encoder has {self._vocabulary}")
            return ids.astype(np.int32)

    @property
    def size(self) -> int:
        """The number of tokens that the tokenizer knows."""
        return len(self._tokenizer)

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without those of begin and end."""
        with self._explained():
            return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _add(self, added: Sequence[str]) -> None:
        if known := [token for token in added if token in self._tokenizer.get_vocab()]:
            raise UserError(f"tokens.add: this model has {', '.join(known)} already; take another name")
        if len(self._tokenizer) != self._vocabulary:
            raise UserError(
                f"tokens.add: the tokenizer {self._path} has {len(self._tokenizer)} tokens and the text encoder's table"
                f" {self._vocabulary} rows; new ones need as many"
            )
        self._tokenizer.add_tokens(list(added))
        self._vocabulary += len(added)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, new tokens included, as this version of the library does."""
        self._tokenizer.save_pretrained(folder)

    def _explained(self) -> AbstractContextManager[None]:
        """Replace whatever the libraries raise with a UserError that names the tokenizer."""
        return reading(f"{self._path} is broken", "download it again")

    def _warn_if_cut(self, prompt: str) -> None:
        ids = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        lost = ids[self._length - 2 :]  # begin and end of text take two places
        if lost:
            self._warned.add(prompt)
            log.warning("prompt longer than %d tokens, cut before %r", self._length - 2, self._tokenizer.decode(lost))


def load_tokenizer(pipeline: PipelineDir, added: Sequence[str] = ()) -> Tokenizer:
    """Return the pipeline's tokenizer with new tokens, padding to the text encoder's window (77 tokens)."""
    encoder = pipeline.component_config("text_encoder")
    return Tokenizer(
        pipeline.tokenizer_path, encoder["max_position_embeddings"], encoder.get("vocab_size", 49408), added
    )
