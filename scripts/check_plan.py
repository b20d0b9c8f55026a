"""Compare the peaks that a plan predicts with measured ones, for combinations of memory techniques.

    python scripts/check_plan.py                                  # tiny model, CPU: half a minute
    python scripts/check_plan.py --size sd15 --resolution 512     # on a GPU; on a CPU some minutes a line and 20 GB

On a GPU, PyTorch's allocator reports the memory in use and the reserved memory. On a CPU the profiler records every
allocation; this does not depend on the plan, which uses fake tensors. The exit code is 1 if a peak of memory in use
differs by more than 10 %. On a CPU, training with bitsandbytes is in brackets and not judged, as it computes on copies
there.
"""

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_pipeline import SIZES, make_pipeline

from booth.config.values import default_config, set_field
from booth.data.inputs import preview_batch_size
from booth.models.open import open_pipeline
from booth.models.pipeline import PipelineDir
from torchbooth.backend import Backend
from torchbooth.host_states import movable
from torchbooth.memory import AT_WORK, trains
from torchbooth.memory_plan import SAMPLING_TABLE, Sizes, plan
from torchbooth.optim import BITSANDBYTES

BLOCK = {"train.gradient_checkpointing": "block"}
FUSED = {"memory.fused_backward": True}
BF16 = {"train.precision": "bf16"}
ROUNDED = {**BF16, "memory.weights": "bf16"}
EIGHT_BIT = {"train.optimizer": "adamw8bit"}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "recomputed": BLOCK,
    "recomputed at full resolution": {**BLOCK, "train.checkpointed_blocks": ("down_blocks.0",)},
    "bf16": BF16,
    "bf16, recomputed": {**BF16, **BLOCK},
    "8 bits": EIGHT_BIT,
    "8 bits, fused": {**EIGHT_BIT, **FUSED},
    "adafactor, fused": {"train.optimizer": "adafactor", **FUSED},
    "lion, recomputed, fused": {"train.optimizer": "lion", **BLOCK, **FUSED},
    "bf16 weights": ROUNDED,
    "bf16 weights, fused, recomputed": {**ROUNDED, **FUSED, **BLOCK},
    "bf16 weights, fused, 8 bits": {**ROUNDED, **FUSED, **EIGHT_BIT},
    "all of these": {**ROUNDED, **FUSED, **EIGHT_BIT, **BLOCK},
    "all, states away for previews": {
        **ROUNDED, **FUSED, **EIGHT_BIT, **BLOCK, "memory.offload_optimizer": "sampling",
    },
    "two pieces": {"train.accumulation": 2, "train.batch_size": 2, **BF16},
    "text encoder": {"train.text_encoder": True, **BF16, **BLOCK},
    "adafactor, bf16 weights, fused": {"train.optimizer": "adafactor", **ROUNDED, **FUSED},
    "pulled and averaged": {"train.pull": 1.0, "ema.decay": 0.9},
    "tiles, states away": {"memory.vae_tiling": True, "memory.offload_optimizer": "sampling"},
}  # fmt: skip
if torch.cuda.is_available():  # on a CPU, host and device have the same memory
    COMBINATIONS["all, states in the host's memory"] = {
        **COMBINATIONS["all of these"], "memory.offload_optimizer": "always",
    }  # fmt: skip


def cpu_peak(work: Callable[[], Any]) -> int:
    """Do the work and return the bytes that it allocates at its worst moment, without the memory in use before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    return max(np.cumsum([0, *(event["args"]["Bytes"] for event in memory)]).tolist())


def measure(config: Any, pipeline: PipelineDir) -> dict[str, tuple[float, float]]:
    """Run each phase with two sampling steps and two updates; return {phase: (GiB in use, GiB reserved)}."""
    backend, sizes = Backend(config), Sizes.of(config, pipeline)
    models = backend.load(pipeline)
    peaks: dict[str, tuple[float, float]] = {}
    state: Any = None

    def held(work: str) -> int:
        """Return the bytes of networks and states on the device in this work; on a CPU all are on it."""
        networks = [net for name, net in models.networks.items() if name in AT_WORK[work] or trains(net)]
        tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
        if state is not None and not (work == "sampling" and config.memory.offload_optimizer == "sampling"):
            tensors += [tensor for each in state.optimizer.state.values() for _, tensor in movable(each)]
        if state is not None:
            tensors += [*state.anchor.values(), *(state.average.weights.values() if state.average else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def phase(name: str, at_work: str, work: Callable[[], Any]) -> None:
        if torch.cuda.is_available():
            gc.collect()  # hooks and optimizers refer to each other, so they need the garbage collector
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            work()
            peak = (torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30)
        else:
            before = held(at_work)
            peak = ((before + cpu_peak(work)) / 2**30, 0.0)
        peaks[name] = max(peaks.get(name, peak), peak)

    def pictures(settings: Any, images: int) -> Callable[[], Any]:
        height, width, channels = sizes.latents
        noise = np.zeros((images, height, width, channels), np.float32)
        context = np.zeros((images, sizes.tokens, sizes.width), np.float32)
        return lambda: backend.sample(models, noise, context, context, SAMPLING_TABLE, settings.guidance)

    phase("class images", "sampling", pictures(config.prior, config.prior.batch_size))
    side = config.data.resolution
    pixels = np.zeros((config.data.encode_batch_size, side, side, 3), np.float32)
    phase("encoding images", "encoding images", lambda: backend.encode_images(models, pixels))
    state = backend.init(models)
    batch = sizes.batch(config)
    for _ in range(2):
        phase("training", "training", lambda: backend.train_step(state, batch))
    backend.models(state)
    phase("previews", "sampling", pictures(config.samples, preview_batch_size(config)))
    return peaks


def compare(
    pipeline: PipelineDir, resolution: int, combination: dict[str, Any]
) -> dict[str, tuple[float, float, float]]:
    """Return {phase: (GiB planned, GiB in use, GiB reserved)} of a combination."""
    config = default_config()
    config.data.resolution, config.samples.before_after = resolution, True
    config.prior.batch_size = config.data.encode_batch_size = 2
    for name, value in combination.items():
        set_field(config, name, value)
    planned = plan(Backend, config, pipeline).peak_gib
    return {phase: (planned[phase], *measured) for phase, measured in measure(config, pipeline).items()}


def counts(combination: dict[str, Any]) -> bool:
    """Return whether the peak of training can be measured on this machine."""
    return torch.cuda.is_available() or combination.get("train.optimizer") not in BITSANDBYTES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=COMBINATIONS, help="the combinations to measure; default: all")
    options = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        pipeline = open_pipeline(str(make_pipeline(options.size, Path(folder) / "pipeline")), "", "")
        print("GiB planned/in use/reserved")
        for name in options.only or COMBINATIONS:
            phases = compare(pipeline, options.resolution, COMBINATIONS[name])
            if not counts(COMBINATIONS[name]):
                planned, used, _ = phases.pop("training")
                name += f" ({planned:.3f}/{used:.3f})"
            cells = [f"{phase} {a:.3f}/{b:.3f}/{c:.3f}" for phase, (a, b, c) in phases.items()]
            print(f"{name}: {', '.join(cells)}", flush=True)
            worst = max(worst, *(abs(planned / used - 1) for planned, used, _ in phases.values()))
    print(f"largest difference: {worst:.1%}")
    return int(worst > 0.1)


if __name__ == "__main__":
    sys.exit(main())
