"""The sharding: which rows each process computes on, how gradients are summed, how weights are split.

The loss is a weighted sum over rows, so gradients of processes are added and never divided. In data parallel training
every process has all weights, and each gradient is reduced as soon as it is computed. If `mesh.fsdp` processes share
one copy, PyTorch's FSDP2 splits weights, gradients and optimizer states of the UNet.
"""

from collections.abc import Iterable, Set
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from booth.common.errors import UserError
from booth.diffusion.backend import ROW_FIELDS, WEIGHT_FIELDS, Batch


def processes() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leads() -> bool:
    """Return whether this process writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


# Rows


def own_rows(rows: int, pieces: int) -> Set[int] | None:
    """Return the rows of a batch that this process computes on, or None for all."""
    if processes() == 1:
        return None
    return {row for piece in range(pieces) for row in range(rows)[piece::pieces][dist.get_rank() :: processes()]}


def own_part(piece: Batch) -> Batch:
    """Return this process's rows of a piece, of NumPy arrays. All processes get equally many: missing rows repeat the
    last one with weight 0."""
    if processes() == 1:
        return piece
    rows = len(piece.timestep)
    chosen = np.arange(dist.get_rank(), -(-rows // processes()) * processes(), processes())
    there = chosen < rows
    chosen = np.where(there, chosen, 0)
    part: dict[str, Any] = {name: getattr(piece, name)[chosen] for name in ROW_FIELDS}
    for name in WEIGHT_FIELDS:
        part[name] = part[name] * there.astype(np.float32)
    return replace(piece, **part)


def split_rows(array: np.ndarray) -> np.ndarray:
    """Return this process's share of rows that all processes have. All get equally many: missing rows repeat the last
    one."""
    if processes() == 1:
        return array
    share = -(-len(array) // processes())
    chosen = np.arange(share) + dist.get_rank() * share
    return array[np.minimum(chosen, len(array) - 1)]


def join_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Return the inverse of `split_rows`, on every process."""
    if processes() == 1:
        return array
    parts: list[Any] = [None] * processes()
    dist.all_gather_object(parts, array)
    return np.concatenate(parts)[:rows]


# Gradients and weights


class GradientSum:
    """Adds up the gradients of all processes, each while the backward pass continues with the next."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.active = True  # whether this is the last backward pass of an update
        self._running: list[Any] = []
        if processes() > 1:
            for parameter in parameters:
                if not isinstance(parameter, DTensor):  # FSDP2 does it by itself
                    parameter.register_post_accumulate_grad_hook(self._reduce)

    def _reduce(self, parameter: torch.Tensor) -> None:
        if self.active:
            self._running.append(dist.all_reduce(parameter.grad, async_op=True))

    def wait(self) -> None:
        """Wait until all sums are complete."""
        for work in self._running:
            work.wait()
        self._running.clear()


def sum_metrics(metrics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the sums over all processes of the parts of the loss."""
    if processes() == 1:
        return metrics
    values = torch.stack(list(metrics.values()))
    dist.all_reduce(values)
    return dict(zip(metrics, values.unbind(), strict=True))


def check_mesh(fsdp: int) -> None:
    """Raise UserError if `mesh.fsdp` does not divide the number of processes."""
    if processes() % fsdp:
        raise UserError(
            f"mesh.fsdp={fsdp} must divide the number of processes, {processes()}: start them with"
            f" torchrun --nproc-per-node {fsdp} -m torchbooth.train ..."
        )


def shard(unet: Any, fsdp: int) -> None:
    """Split a UNet's weights over `fsdp` processes, in place; they are gathered block by block."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    copies = processes() // fsdp
    shape, names = ((copies, fsdp), ("data", "fsdp")) if copies > 1 else ((fsdp,), ("fsdp",))
    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    parts = [*unet.down_blocks, unet.mid_block, *unet.up_blocks, unet]
    for part in parts:
        fully_shard(part, mesh=mesh)
    for part in parts:
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a sharded tensor; all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a parameter, or of a tensor split like one: the same memory, without gradients."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_as(value: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor split like the example, if the example has its shape."""
    if not isinstance(example, DTensor) or value.shape != example.shape:
        return value
    return distribute_tensor(value.to(example.device), example.device_mesh, example.placements, src_data_rank=None)
