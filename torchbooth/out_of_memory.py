"""One line that says what did not fit and what to change, in place of PyTorch's long message about its allocator."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from booth.common.errors import OutOfMemory

_ADVICE = {
    "class images": "lower prior.batch_size (of the sample command: --batch-size), or set memory.vae_tiling=true",
    "encoding images": "lower data.encode_batch_size",
    "encoding prompts": "close what else uses the GPU",
    "previews": "set memory.offload_optimizer='sampling' or memory.vae_tiling=true, or raise train.accumulation",
    "training": "set train.gradient_checkpointing='block', train.optimizer='adamw8bit', memory.fused_backward=true or"
    " memory.weights='bf16', or lower train.batch_size",
}


@contextmanager
def named(phase: str) -> Iterator[None]:
    """Raise OutOfMemory in place of PyTorch's error if the block runs out of memory."""
    try:
        yield
    except (
        RuntimeError
    ) as error:  # torch.OutOfMemoryError is a subclass; for the host's memory there is only RuntimeError
        asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
        if not asked and not re.search(r"out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", str(error)):
            raise
        more, there = f", where {asked[1]} more were asked for" if asked else "", ""
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            there = f", with {free / 2**30:.2f} GiB free of {total / 2**30:.1f}"
        raise OutOfMemory(
            f"out of memory in {phase}{more}{there}; {_ADVICE[phase]};"
            " memory.fit='auto' chooses what fits before a run begins"
        ) from error
