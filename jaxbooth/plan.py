"""The plan: the real TPU compiler compiles the training step for a TPU slice, without the slice.

It compiles `step.train_step` with the shapes and shardings of training; no weights are read. This needs the `tpu` extra
(libtpu) and runs on any CPU.
"""

import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from booth.common.errors import UserError
from booth.config.concepts import has_prior
from booth.config.trained import trained_networks, trains_text
from booth.diffusion.sampling import latent_shape
from booth.models.adapters import adapter_of
from booth.models.pipeline import PipelineDir
from jaxbooth import networks, optim, step
from jaxbooth.chips import CHIPS, Chip, devices_of
from jaxbooth.cost import BETWEEN_SLICES, Cost, Flops, count_flops, program_cost
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.plan_arguments import bytes_on_a_device, resident_bytes, shapes_of_arguments
from jaxbooth.precision import exact_float32
from jaxbooth.sharding import mesh_of, slices_of
from jaxbooth.weights import Network, to_diffusers_shapes

GIB = 2**30
KERNEL_SPEED = 0.4  # the assumed share of the peak for kernels that the compiler cannot estimate


@dataclass
class Plan:
    """The needs of one device for an update. The fields have the names in the JSON that `--json` writes.

    `peak_gib` is all memory at the peak, and includes `resident_gib`, the networks and the average that the step does
    not use. `flops_per_row` includes `kernel_flops_per_row`, those in Pallas kernels, which `cycles_per_row` counts at
    `KERNEL_SPEED` of the peak. A device receives `collective_bytes` in an update. Times are in seconds. `utilisation`
    counts the FLOPs that the model needs, without those of recomputation.
    """

    topology: str
    device: str
    devices: int
    rows_per_device: int
    accumulation: int
    fits: bool
    peak_gib: float
    hbm_gib: float
    arguments_gib: float = 0.0
    temporaries_gib: float = 0.0
    resident_gib: float = 0.0
    flops_per_row: float = 0.0
    kernel_flops_per_row: float = 0.0
    compiler_cycles_per_row: float = 0.0
    cycles_per_row: float = 0.0
    collective_bytes: int = 0
    collectives: dict[str, int] = field(default_factory=dict)
    kernels: int = 0
    compute_s: float = 0.0
    collective_s: float = 0.0
    samples_per_s: float = 0.0
    utilisation: float = 0.0
    compile_s: float = 0.0
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}

    def text(self) -> str:
        """Return the plan as text for the user."""
        lines = [
            f"{self.topology}: {self.devices} x {self.device}, {self.rows_per_device} rows on each,"
            f" {self.devices * self.rows_per_device} an update"
            + (f" in {self.accumulation} pieces" if self.accumulation > 1 else "")
        ]
        if not self.fits:
            return f"{lines[0]}\n  {self.advice}"
        kernels = ""
        if self.kernels:
            kernels = (
                f"; {self.kernels} Pallas kernels with {self.kernel_flops_per_row:.2e} FLOPs of it, which the"
                f" compiler does not estimate: taken at {KERNEL_SPEED:.0%} of the peak"
            )
        moved = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in self.collectives.items()) or "none"
        lines += [
            f"  memory      {self.peak_gib:.2f} GiB of {self.hbm_gib}: weights, optimizer and batch"
            f" {self.arguments_gib:.2f}, temporaries {self.temporaries_gib:.2f},"
            f" other networks and average {self.resident_gib:.2f}",
            f"  work        {self.flops_per_row:.2e} FLOPs and {self.cycles_per_row:.2e} cycles a row{kernels}",
            f"  collectives {self.collective_bytes / GIB:.2f} GiB received an update ({moved})",
            f"  step        {self.compute_s + self.collective_s:.3f} s: {self.compute_s:.3f} of work, and"
            f" {self.collective_s:.3f} of collectives if none is hidden behind it",
            f"  speed       {self.samples_per_s:.1f} samples/s, {self.samples_per_s / self.devices:.2f} a device;"
            f" {self.utilisation:.0%} of the peak, by the compiler's estimates",
        ]
        return "\n".join([*lines, *([f"  {self.advice}"] if self.advice else [])])


def run(config: Any, pipeline: PipelineDir, topology: str | None, find_batch: bool) -> dict[str, Any]:
    """Print the plan of the config's own batch and, with `find_batch`, the plans tried to find the largest batch.

    Return the content for `--json`: the plan of the largest batch that fits, or the plan that says what does not fit.
    """
    topology = topology or config.mesh.topology
    if not topology:
        raise UserError("--topology is missing and mesh.topology is empty; name a slice such as v3:2x2")
    devices = devices_of(topology)
    exact_float32()
    pieces, kinds = config.train.accumulation, 2 if has_prior(config) else 1
    # The number of rows on each device grows by this much, to give whole pieces with as many class as instance rows.
    more = pieces * (kinds if len(devices) % kinds else 1)
    own = -(-kinds * config.train.batch_size // pieces // len(devices)) * pieces

    def make(rows: int) -> Plan:
        return plan(config, pipeline, topology, devices, rows)

    best = make(own)
    print(best.text())
    if find_batch:
        for tried in largest(make, more, best):
            print(tried.text())
            if tried.fits and (not best.fits or tried.rows_per_device > best.rows_per_device):
                best = tried
        if best.fits:
            batch_size = best.rows_per_device * len(devices) // kinds
            print(f"largest batch: train.batch_size={batch_size}, {best.rows_per_device} rows on each device")
        else:
            print(f"not even {more} rows on each device fit")
    return best.as_dict()


def plan(config: Any, pipeline: PipelineDir, topology: str, devices: list[Any], rows_per_device: int) -> Plan:
    """Compile the step for this number of rows per device and update. Return its needs. This takes minutes at full
    size."""
    mesh = mesh_of(devices, config.mesh.fsdp, slices_of(devices))
    chip = CHIPS[devices[0].device_kind]
    pieces = config.train.accumulation
    made = Plan(
        topology, devices[0].device_kind, len(devices), rows_per_device, pieces, False, float("inf"), chip.hbm_gib
    )  # fmt: skip
    plain = networks.build(pipeline, mesh, config)
    shapes = {name: to_diffusers_shapes(network) for name, network in plain.items()}
    parts = networks.build(pipeline, mesh, config, adapter_of(config, pipeline, shapes))
    made.resident_gib = (
        resident_bytes(parts, (*trained_networks(config), *(["text_encoder"] if trains_text(config) else [])), mesh)
        / GIB
    )
    arguments = shapes_of_arguments(config, pipeline, parts, mesh, rows_per_device // pieces)
    if config.ema.decay > 0 and config.ema.device == "device":
        made.resident_gib += bytes_on_a_device(arguments[0]) / GIB
    traced = step.train_step.trace(
        *arguments,
        unet=parts["unet"],
        text_encoder=parts["text_encoder"],
        settings=optim.Settings.of(config),
        mesh=mesh,
    )
    flops = count_flops(traced.jaxpr.jaxpr)
    with _ticking(f"compiling {rows_per_device} rows a device for {topology}") as elapsed:
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if not (needed := _too_much(str(error))):
                raise
            made.arguments_gib = bytes_on_a_device(arguments) / GIB
            made.temporaries_gib, made.hbm_gib = needed
            made.peak_gib = made.arguments_gib + made.temporaries_gib + made.resident_gib
        else:
            _read(made, compiled, flops, needed_flops(config, pipeline), chip)
    made.compile_s = elapsed()
    made.fits = made.peak_gib <= made.hbm_gib
    made.advice = made.advice if made.fits else _advice(config, made)
    return made


def largest(make: Callable[[int], Plan], step: int, first: Plan) -> Iterator[Plan]:
    """Yield the plans from `first` to that of the largest number of rows per device that fits, a multiple of `step`.

    The number is doubled or halved until one fits and one does not, then bisected.
    """
    tried, fits, rows = first, 0, first.rows_per_device
    if first.fits:
        while tried.fits:
            fits, rows = rows, 2 * rows
            tried = make(rows)
            yield tried
    while rows - fits > step:
        middle = (fits + rows) // 2 // step * step
        tried = make(middle)
        yield tried
        fits, rows = (middle, rows) if tried.fits else (fits, middle)


def _too_much(message: str) -> tuple[float, float] | None:
    """Return (GiB of temporaries, GiB of the device) from the compiler's refusal; None if it is about something else.

    If it only gives the sum of all memory, the sum is taken for the temporaries, which is a little too much.
    """
    found = re.search(r"HLO temporaries \(([\d.]+)([GMK])\) exceeds available HBM \(([\d.]+)G\)", message)
    found = found or re.search(r"Used ([\d.]+)([GMK]) of ([\d.]+)G hbm", message)
    return (float(found[1]) / {"G": 1, "M": 2**10, "K": 2**20}[found[2]], float(found[3])) if found else None


def needed_flops(config: Any, pipeline: PipelineDir) -> float:
    """Return the FLOPs of the UNet for a row: those of the forward pass, and twice as many for the backward pass. For
    an adapter the backward pass has only once as many, since it needs no gradients of the weights."""
    side, width = config.data.resolution, pipeline.component_config("unet")["cross_attention_dim"]
    tokens = pipeline.component_config("text_encoder")["max_position_embeddings"]
    row = [(1, *latent_shape(pipeline, side, side)), (1,), (1, tokens, width)]
    unet = Network.build(UNet2DConditionModel, pipeline.component_config("unet"))
    traced = jax.make_jaxpr(lambda params, *row: unet.bind(params)(*row))(
        unet.shapes, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in row)
    )
    return (3 if config.adapter.kind == "none" else 2) * count_flops(traced.jaxpr).total


def _read(made: Plan, compiled: Any, flops: Flops, needed: float, chip: Chip) -> None:
    """Fill in the plan from the compiled step; `needed` are the FLOPs per row by `needed_flops`."""
    memory = compiled.memory_analysis()
    rows = made.rows_per_device
    made.arguments_gib = memory.argument_size_in_bytes / GIB
    made.temporaries_gib = memory.temp_size_in_bytes / GIB
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    made.peak_gib = made.arguments_gib + made.temporaries_gib + outputs / GIB + made.resident_gib
    cost: Cost = program_cost(compiled.as_text())
    made.flops_per_row = flops.total / made.devices / rows
    made.kernel_flops_per_row = flops.kernels / made.devices / rows
    made.compiler_cycles_per_row = cost.cycles / rows
    kernel_cycles = made.kernel_flops_per_row / (KERNEL_SPEED * chip.flops) * chip.clock
    made.cycles_per_row = made.compiler_cycles_per_row + kernel_cycles
    made.kernels = cost.custom_calls.total()
    made.collectives, made.collective_bytes = dict(cost.received), cost.received.total()
    made.compute_s = made.cycles_per_row * rows / chip.clock
    between = cost.received[BETWEEN_SLICES]
    made.collective_s = (made.collective_bytes - between) / chip.link + between / (chip.network or math.inf)
    if between and not chip.network:
        made.advice = f"the speed between slices of {made.device} is not known, and is not counted"
    seconds = made.compute_s + made.collective_s
    made.samples_per_s = made.devices * rows / seconds
    made.utilisation = needed * rows / seconds / chip.flops


def _advice(config: Any, made: Plan) -> str:
    ways = []
    if config.mesh.fsdp < made.devices:
        ways.append(f"mesh.fsdp={made.devices}")
    if config.train.gradient_checkpointing != "block":
        ways.append("train.gradient_checkpointing=block")
    if config.train.precision == "fp32":
        ways.append("train.precision=bf16")
    ways.append("a smaller train.batch_size, or train.accumulation")
    return f"needs {made.peak_gib:.1f} GiB of {made.hbm_gib:.1f}: try " + " or ".join(ways)


@contextmanager
def _ticking(what: str) -> Iterator[Callable[[], float]]:
    """Show a clock on stderr while the compiler is busy. Yield a function that returns the time so far."""
    stop = threading.Event()
    with tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=False) as clock:

        def tick() -> None:
            while not stop.wait(1):
                clock.refresh()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield lambda: clock.format_dict["elapsed"]
        finally:
            stop.set()
            thread.join()
