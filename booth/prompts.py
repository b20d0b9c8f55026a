"""Prompts -> token ids, with the pipeline's own tokenizer."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from booth.errors import UserError

log = logging.getLogger("booth")


class Tokenizer:
    """The CLIP tokenizer of a pipeline folder; pads to `length` with the tokenizer's own pad token.

    UserError if it cannot be read.
    """

    def __init__(self, path: Path, length: int) -> None:
        # transformers takes over a second to import; CLIPTokenizer (unlike AutoTokenizer) does not import torch.
        from transformers import CLIPTokenizer

        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(path)
        except Exception as error:  # its libraries raise what they like
            raise UserError(f"{path} is broken ({' '.join(str(error).split())}); download it again") from error
        self._length = length
        self._warned: set[str] = set()

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """int32 [prompts, length]. A longer prompt is cut, with one warning that quotes what was lost."""
        for prompt in prompts:
            if prompt not in self._warned:
                self._warn_if_cut(prompt)
        encoded = self._tokenizer(list(prompts), padding="max_length", truncation=True, max_length=self._length)
        return np.asarray(encoded["input_ids"], np.int32)

    def _warn_if_cut(self, prompt: str) -> None:
        ids = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        lost = ids[self._length - 2 :]  # begin and end of text take two places
        if lost:
            self._warned.add(prompt)
            log.warning("prompt longer than %d tokens, cut before %r", self._length - 2, self._tokenizer.decode(lost))
