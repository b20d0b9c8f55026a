"""The command `plan`: the memory that a run would need on a GPU, computed without a GPU."""

from typing import Any

from booth.common.errors import UserError
from booth.config.fields import memory_size
from booth.models.pipeline import PipelineDir
from torchbooth.backend import Backend
from torchbooth.fit import card_bytes, fit
from torchbooth.memory_plan import GIB, plan
from torchbooth.packages import check_packages


def run(config: Any, pipeline: PipelineDir, gpu: str | None) -> dict[str, Any]:
    """Print the plan of the config's run, with the techniques that `memory.fit` or `gpu` chooses; return it too."""
    if gpu and memory_size(gpu) is None:
        raise UserError(f"--gpu {gpu!r} must be a size such as 8GB")
    if config.mesh.fsdp > 1:
        raise UserError(f"mesh.fsdp={config.mesh.fsdp} must be 1: a plan is for one process with all weights")
    check_packages(config)
    config = config.copy_and_resolve_references()
    config.memory.fit = gpu or config.memory.fit
    config = fit(Backend, config, pipeline)
    made = plan(Backend, config, pipeline)
    print(made.text())
    if not config.memory.fit:
        return made.as_dict()
    return {**made.as_dict(), "gpu_gib": round(card_bytes(config.memory.fit) / GIB, 2)}
