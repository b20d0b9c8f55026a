"""The result of a finished run: a diffusers pipeline or a LoRA file, and the embeddings of new tokens."""

import logging
from pathlib import Path
from typing import Any

from booth.data.inputs import Inputs, as_trained
from booth.diffusion.backend import Backend
from booth.models import lora_file
from booth.models.adapters import Adapter
from booth.models.export_folder import export
from booth.models.lora_file import write_lora
from booth.models.new_tokens import enlarged, keep_embeddings, new_tokens
from booth.train.run_folder import RunDir

log = logging.getLogger("booth")


def write_result(
    config: Any, inputs: Inputs, run: RunDir, adapter: Adapter | None, backend: Backend, state: Any, step: int
) -> None:
    """Write the trained weights of `step` into the run folder. Several processes give their tensors; one writes."""
    precision = config.export.precision
    tensors, added = backend.tensors(state), new_tokens(config)
    if not run.is_written_here:
        for _ in tensors:
            pass
        return
    if added:
        tensors = keep_embeddings(run.tokens, added, tensors)
    if adapter:
        write_lora(run.lora, adapter, tensors, precision, step)
        log.info(
            "LoRA written to %s, for diffusers; for WebUIs use `export --format kohya` (ComfyUI would load half of this"
            " file), and for a pipeline with it `export`",
            run.lora / lora_file.FILE,
        )
        if config.train.zero_terminal_snr:
            log.info(lora_file.ZERO_SNR)
    else:
        tensors = enlarged(inputs.pipeline, tensors) if added else tensors
        export(as_trained(inputs.pipeline, config), run.pipeline, tensors, precision, step, added)
        log.info("pipeline written to %s", run.pipeline)


def result_folder(run: RunDir, adapter: Adapter | None) -> Path:
    """Return the folder of a run's result."""
    return run.lora if adapter else run.pipeline
