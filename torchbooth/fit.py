"""`memory.fit`: choose the least costly memory techniques with which a run fits on a GPU, by planning the run."""

import importlib.util
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

from booth.common.errors import UserError
from booth.config.fields import memory_size
from booth.config.trained import trained_networks
from booth.config.validation import validate_updates
from booth.config.values import default_of, get, may_change, set_field, typed
from booth.diffusion.optimizers import state_bytes
from booth.models.pipeline import PipelineDir
from torchbooth.memory_plan import CONTEXT_GIB, GAPS, GIB, TECHNIQUES, plan
from torchbooth.networks import build

log = logging.getLogger("booth")

# The assumed cost of each technique in percent of the speed, raised if the technique changes the results. It was not
# measured on a GPU: it only decides the order in which techniques are tried.
_CHOICES: tuple[tuple[tuple[float, dict[str, Any]], ...], ...] = (
    (
        (0, {}),
        (10, {"train.gradient_checkpointing": "block", "train.checkpointed_blocks": "largest"}),
        (25, {"train.gradient_checkpointing": "block", "train.checkpointed_blocks": ()}),
    ),
    ((0, {}), (20, {"train.accumulation": "train.batch_size"})),
    ((0, {}), (15, {"train.optimizer": "8bit"})),
    ((0, {}), (16, {"memory.fused_backward": True})),
    ((0, {}), (30, {"memory.weights": "bf16", "train.precision": "bf16"})),
    (
        (0, {}),
        (60, {"memory.offload_optimizer": "always", "train.optimizer": "8bit"}),
        (120, {"memory.offload_optimizer": "always"}),  # four times as much to copy
    ),
)


def fit(backend_class: type[Any], config: Any, pipeline: PipelineDir, recorded: Mapping[str, Any] | None = None) -> Any:
    """Return the config with techniques added until every phase fits into `memory.fit`. If that is empty, return it
    unchanged.

    `backend_class` is torchbooth's `Backend`, with which plans are computed. `recorded` is the config of the run that
    is resumed, whose techniques are kept; if `memory.fit` has changed since, the techniques that may change during a
    run are chosen anew. Raise UserError if nothing fits.
    """
    if not config.memory.fit:
        return config
    if config.memory.fit == "auto" and not torch.cuda.is_available():
        log.info("memory.fit='auto': there is no GPU here, so no memory technique is chosen")
        return config
    config = config.copy_and_resolve_references()
    if recorded is not None:
        again = recorded.get("memory.fit") == config.memory.fit
        for name in TECHNIQUES:
            asked = get(config, name)
            changed = asked != default_of(name) and asked != typed(name, recorded.get(name, asked))
            if changed and may_change(name):
                continue
            if name in recorded and (again or not may_change(name)):
                if changed:
                    log.warning("this run keeps %s=%r, not %r", name, recorded[name], asked)
                set_field(config, name, recorded[name])
        if again:
            return config
    fixed = () if recorded is None else tuple(name for name in TECHNIQUES if not may_change(name))
    limit = (card_bytes(config.memory.fit) / GIB - CONTEXT_GIB) / GAPS
    before = config
    config = _fit_training(backend_class, config, pipeline, limit, fixed)
    config = _fit_others(backend_class, config, pipeline, limit, fixed)
    chosen = [f"{name}={get(config, name)!r}" for name in TECHNIQUES if get(config, name) != get(before, name)]
    log.info("memory.fit=%r, %.2f GiB for tensors: %s", config.memory.fit, limit, ", ".join(chosen) or "fits as it is")
    if chosen:
        needed, without = (_peak(backend_class, each, pipeline, "training") for each in (config, before))
        log.info("  training needs %.2f GiB, without these techniques %.2f", needed, without)
    return config


def card_bytes(size: str) -> float:
    """Return the bytes of a size such as 8GB; for "auto", the free memory of the GPU plus this process's CUDA context.

    Raise UserError if there is no GPU to ask.
    """
    if size != "auto":
        bytes_ = memory_size(size)
        assert bytes_ is not None, "the rule of memory.fit"
        return bytes_
    if not torch.cuda.is_available():
        raise UserError("memory.fit='auto' needs a GPU to ask; give a size such as '8GB'")
    return torch.cuda.mem_get_info()[0] + CONTEXT_GIB * GIB


def _fit_training(
    backend_class: type[Any], config: Any, pipeline: PipelineDir, limit: float, fixed: tuple[str, ...]
) -> Any:
    """Return the config with the least costly combination whose update fits."""
    candidates = list(_candidates(config, pipeline, fixed))
    shapes = _trained_shapes(config, pipeline)
    for candidate in tqdm(candidates, desc="planning memory", unit="plan", leave=False):
        if _at_least(candidate, shapes) <= limit and _peak(backend_class, candidate, pipeline, "training") <= limit:
            return candidate
    least = min(reversed(candidates), key=lambda candidate: _at_least(candidate, shapes))
    needed = _peak(backend_class, least, pipeline, "training")
    raise UserError(
        f"memory.fit={config.memory.fit!r}: an update needs {needed:.1f} GiB with every"
        f" technique, of {limit:.1f} GiB that the card has for tensors; lower data.resolution or train.batch_size"
    )


def _candidates(config: Any, pipeline: PipelineDir, fixed: tuple[str, ...]) -> Iterator[Any]:
    """Yield configs with techniques added, the least costly first; of equal costs, the one that saves most is last."""
    levels = len(pipeline.component_config("unet")["block_out_channels"])
    special = {
        "largest": ("down_blocks.0", f"up_blocks.{levels - 1}"),  # the blocks at full resolution
        "train.batch_size": config.train.batch_size,
        "8bit": _eight_bit(config.train.optimizer),
    }
    seen = []
    for choices in sorted(itertools.product(*_CHOICES), key=lambda choices: sum(cost for cost, _ in choices)):
        candidate = config.copy_and_resolve_references()
        for _, fields in choices:
            for name, value in fields.items():
                set_field(candidate, name, special.get(value, value) if isinstance(value, str) else value)
        settings = {name: get(candidate, name) for name in TECHNIQUES}
        kept = all(settings[name] == get(config, name) for name in fixed) and not _weaker(settings, config)
        possible = settings["train.precision"] != "bf16" or _computes_bfloat16(config)
        if settings in seen or not kept or not possible:
            continue
        seen.append(settings)
        with suppress(UserError):  # two techniques may exclude each other
            validate_updates(candidate)
            yield candidate


def _eight_bit(optimizer: str) -> str:
    """Return the same optimizer with states in 8 bits, if it is available here."""
    names = {"adamw": "adamw8bit", "lion": "lion8bit"} if importlib.util.find_spec("bitsandbytes") else {}
    return names.get(optimizer, optimizer)


def _computes_bfloat16(config: Any) -> bool:
    """Return whether bfloat16 may be chosen: not if the user chose float16, and only if the GPU supports it."""
    return config.train.precision != "fp16" and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported(False))


def _weaker(settings: Mapping[str, Any], config: Any) -> bool:
    """Return whether fewer blocks are recomputed than the user asked for."""
    everything = config.train.gradient_checkpointing == "block" and not config.train.checkpointed_blocks
    return everything and bool(settings["train.checkpointed_blocks"])


def _trained_shapes(config: Any, pipeline: PipelineDir) -> dict[str, list[torch.Size]]:
    """Return the shapes of the trained tensors by component. Adapters, which need almost no memory, have none."""
    if config.adapter.kind == "lora":
        return {}
    with FakeTensorMode():
        networks = build(pipeline)
    return {
        component: [parameter.shape for parameter in networks[component].parameters()]
        for component in trained_networks(config)
    }


def _at_least(config: Any, shapes: Mapping[str, Sequence[Sequence[int]]]) -> float:
    """Return the GiB of weights, copies, gradients and optimizer states: if these are too much, no plan is needed."""
    averaged = config.ema.decay > 0 and config.ema.device == "device"
    copies = 4 * (averaged + (config.train.pull > 0))
    total = 0
    for component, of_component in shapes.items():
        count = sum(map(math.prod, of_component))
        weight = 2 if component == "unet" and config.memory.weights == "bf16" else 4
        gradient = 0 if config.memory.fused_backward else weight
        total += count * (weight + copies + gradient)
        if config.memory.offload_optimizer != "always":
            total += sum(state_bytes(config.train.optimizer, shape) for shape in of_component)
    return total / GIB


def _fit_others(
    backend_class: type[Any], config: Any, pipeline: PipelineDir, limit: float, fixed: tuple[str, ...]
) -> Any:
    """Return the config with the other phases fitted: fewer pictures at once, then optimizer states on the host, and
    finally tiles."""

    def too_much(phase: str) -> bool:
        return _peak(backend_class, config, pipeline, phase) > limit

    for phase, name in (("class images", "prior.batch_size"), ("encoding images", "data.encode_batch_size")):
        while name not in fixed and get(config, name) > 1 and too_much(phase):
            set_field(config, name, get(config, name) // 2)
    if config.memory.offload_optimizer == "none" and too_much("previews"):
        config.memory.offload_optimizer = "sampling"
    if too_much("class images") or too_much("previews"):
        config.memory.vae_tiling = True
    for phase in ("encoding prompts", "class images", "encoding images", "previews"):
        if too_much(phase):
            needed = _peak(backend_class, config, pipeline, phase)
            raise UserError(
                f"memory.fit={config.memory.fit!r}: {phase} need {needed:.1f} GiB with every"
                f" technique, of {limit:.1f} GiB that the card has for tensors; lower data.resolution"
            )
    return config


def _peak(backend_class: type[Any], config: Any, pipeline: PipelineDir, phase: str) -> float:
    """Return the peak of a phase in GiB; 0 for a phase that the run does not have."""
    return plan(backend_class, config, pipeline, (phase,)).peak_gib.get(phase, 0.0)
