"""The cost of a step: FLOPs counted in its jaxpr, cycles and traffic read from the TPU compiler's text.

The TPU compiler writes an estimate of the cycles on every fusion of the optimized HLO. The body of a loop is written
once, however often it runs, so every computation is multiplied by its trip count. Custom calls (Pallas kernels) and
collectives have no estimate: they are listed separately.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from typing import Any

from jax.extend import core

_LANES = 128  # the matrix unit works on tiles of so many rows and columns


@dataclass
class Flops:
    """A multiply-add counts 2. `kernels` are those inside Pallas kernels; their products are counted with the padding
    of the matrix unit, since the compiler does not estimate them."""

    total: float = 0.0
    kernels: float = 0.0

    def add(self, other: "Flops", times: float) -> None:
        self.total += times * other.total
        self.kernels += times * other.kernels


def count_flops(jaxpr: Any) -> Flops:
    """Return the FLOPs of all matrix products and convolutions of a jaxpr, over all devices and all passes of loops.

    Raise ValueError for a loop of unknown length.
    """
    counted = Flops()
    for equation in jaxpr.eqns:
        kind, params = equation.primitive.name, equation.params
        inner = [_open(value) for value in _jaxprs(params)]
        if kind == "dot_general":
            counted.add(Flops(_dot(equation)), 1)
        elif kind == "conv_general_dilated":
            counted.add(Flops(_convolution(equation)), 1)
        elif kind == "scan":
            counted.add(count_flops(inner[0]), params["length"])
        elif kind == "while" and any(count_flops(body).total for body in inner):
            raise ValueError("a while loop with products in it: how often it runs is not in the program")
        elif kind == "cond":
            branches = [count_flops(branch) for branch in inner]
            counted.add(max(branches, key=lambda branch: branch.total), 1)
        elif kind == "pallas_call":
            runs = math.prod(params["grid_mapping"].grid)
            padded = runs * _padded_products(_open(params["jaxpr"]))
            counted.add(Flops(padded, padded), 1)
        else:
            times = params["mesh"].size if kind == "shard_map" else 1
            for body in inner:
                counted.add(count_flops(body), times)
    return counted


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    values = [item for value in params.values() for item in (value if isinstance(value, list | tuple) else (value,))]
    return [value for value in values if isinstance(value, core.Jaxpr | core.ClosedJaxpr)]


def _open(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _padded_products(jaxpr: Any) -> float:
    """Return the FLOPs of the products in a kernel's body, with each side rounded up to whole tiles."""
    total = 0.0
    for equation in jaxpr.eqns:
        kind, inner = equation.primitive.name, [_padded_products(_open(body)) for body in _jaxprs(equation.params)]
        if kind == "dot_general":
            (left_axes, right_axes), (left_batch, right_batch) = equation.params["dimension_numbers"]
            left, right = (variable.aval.shape for variable in equation.invars)

            def padded(shape: tuple[int, ...], axes: Any) -> int:
                return _whole_tiles(math.prod(shape[axis] for axis in axes))

            def rest(shape: tuple[int, ...], *used: Any) -> list[int]:
                return [axis for axis in range(len(shape)) if not any(axis in axes for axes in used)]

            batch = math.prod(left[axis] for axis in left_batch)
            total += 2.0 * batch * padded(left, left_axes) * padded(left, rest(left, left_axes, left_batch)) * padded(
                right, rest(right, right_axes, right_batch)
            )  # fmt: skip
        elif kind == "scan":
            total += equation.params["length"] * inner[0]
        elif kind == "while" and any(inner):
            raise ValueError("a while loop with products in a kernel: how often it runs is not in the program")
        else:
            total += max(inner, default=0.0) if kind == "cond" else sum(inner)
    return total


def _whole_tiles(size: int) -> int:
    return -(-size // _LANES) * _LANES


def _convolution(equation: Any) -> float:
    """Return the FLOPs of a convolution, without the zeros that a transposed convolution inserts."""
    numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    output = math.prod(equation.outvars[0].aval.shape)
    inserted = math.prod(equation.params["lhs_dilation"])
    window = math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    return 2.0 * output * window * kernel[numbers.rhs_spec[1]] / inserted


@dataclass
class Cost:
    """The cost of a program on one device. `received` are bytes by kind of collective, `BETWEEN_SLICES` among them;
    `custom_calls` are counts by target."""

    cycles: int = 0
    received: Counter[str] = field(default_factory=Counter)
    custom_calls: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Cost", times: int) -> None:
        self.cycles += times * other.cycles
        self.received += Counter({kind: times * size for kind, size in other.received.items()})
        self.custom_calls += Counter({kind: times * count for kind, count in other.custom_calls.items()})


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(
    r"\b(to_apply|calls|body|condition|branch_computations|true_computation|false_computation)=(%?[\w.\-]+|\{[^}]*\})"
)
_ARRAY = re.compile(r"\b([a-z]+)(\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\]")
_COLLECTIVES = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute", "all-reduce")
# The compiler takes what slices send to each other out of its collectives. The runtime does it, for these slices.
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}')
BETWEEN_SLICES = "between slices"
_KERNEL = "tpu_custom_call"  # other custom calls are the compiler's own and take no time

_Instruction = tuple[str, str, str, str]  # name, shape, op, and the rest of the line


def program_cost(text: str) -> Cost:
    """Return the cost of one run of a compiled program, from `compiled.as_text()`.

    Raise ValueError for a loop whose number of trips cannot be read: a wrong sum must not look like a correct one.
    """
    computations, entry = _computations(text)

    @cache
    def cost(name: str) -> Cost:
        total = Cost()
        for _, shape, op, rest in computations[name]:
            total.cycles += sum(int(cycles) for cycles in _CYCLES.findall(rest))
            kind = op.removesuffix("-start")
            if kind in _COLLECTIVES:
                total.received[kind] += _received(kind, shape, _group_size(rest), op.endswith("-start"))
            elif op == "recv" and (slices := _SLICES.search(rest)):
                number = slices[1].count(",") + 1
                total.received[BETWEEN_SLICES] += 2 * _bytes(*_ARRAY.findall(shape)[0]) * (number - 1) // number
            elif op == "custom-call" and _KERNEL in rest:
                total.custom_calls[_KERNEL] += 1
            named = {key: [name.strip(" %{}") for name in names.split(",")] for key, names in _CALLED.findall(rest)}
            if op == "while":
                total.add(cost(named["body"][0]), _trips(computations[named["condition"][0]]))
            elif op == "conditional":
                total.add(max((cost(inner) for inner in chain(*named.values())), key=lambda branch: branch.cycles), 1)
            elif op in ("call", "async-start"):
                for inner in chain(*named.values()):
                    total.add(cost(inner), 1)
            elif op == "fusion":  # its estimate covers all computations inside it, but not what is sent
                for inner in named["calls"]:
                    total.add(replace(cost(inner), cycles=0), 1)
        return total

    return cost(entry)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Return (the instructions of each computation, the name of the one that starts)."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            current.append(instruction.groups())  # type: ignore[arg-type]
    if not entry:
        raise ValueError("no ENTRY in the program's text")
    return computations, entry


def _trips(condition: list[_Instruction]) -> int:
    """Return the number of trips of a loop that counts from 0 to a constant, as every loop of `lax.scan` does."""
    bounds = [int(rest.partition(")")[0]) for _, shape, op, rest in condition if op == "constant" and shape[0] == "s"]
    if len(bounds) != 1:
        raise ValueError(f"a loop's number of trips cannot be read from {condition}")
    return bounds[0]


def _received(kind: str, shape: str, devices: int, with_operand: bool) -> int:
    """Return the bytes that a device of a ring receives for a collective with this result. An asynchronous collective
    has its operand in the shape too."""
    size = sum(_bytes(*array) for array in _ARRAY.findall(shape))
    if with_operand and kind == "all-gather":
        size = size * devices // (devices + 1)
    if with_operand and kind == "collective-permute":
        size //= 2
    if kind == "reduce-scatter":
        return size * (devices - 1)
    if kind == "all-reduce":  # a reduce-scatter, then an all-gather
        return 2 * size * (devices - 1) // devices
    return size if kind == "collective-permute" else size * (devices - 1) // devices


def _group_size(rest: str) -> int:
    """Return how many devices take part, from replica_groups in any of its notations. Raise ValueError for an unknown
    one."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):  # each device sends to another
        return pairs[1].count("{")
    raise ValueError(f"the devices of a collective cannot be read from {rest[:200]}")


def _bytes(kind: str, bits: str, dims: str) -> int:
    return math.prod(int(n) for n in dims.split(",") if n) * max(1, int(bits or 8) // 8)
