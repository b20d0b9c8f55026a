"""The adapters: LoRA (arXiv 2106.09685). Which layers get one, its shapes and first values, and how it merges.

A layer's weight W acts as W + (alpha / rank) B A, where A [rank, in] and B [out, rank] are all that trains. Of a
convolution A is one too, [rank, in, h, w], and B is 1x1. Tensors are named as PEFT names them:
`unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from booth.common import randomness
from booth.common.errors import UserError
from booth.config.fields import AUTO
from booth.config.trained import trained_networks
from booth.models.pipeline import PipelineDir
from booth.models.weight_names import canonical_name, few

_ATTENTION = r"\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|self_attn\.(q_proj|k_proj|v_proj|out_proj))"
_FEED_FORWARD = r"\.(ff\.net\.(0\.proj|2)|mlp\.(fc1|fc2))"

# Names for rules that a layer's name must match to its end.
PRESETS = {
    "cross_attention": r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)",
    "attention": rf".*{_ATTENTION}",
    "feed_forward": rf".*({_ATTENTION}|{_FEED_FORWARD})",
    # What kohya's scripts adapt, with convolutions: all in a Transformer2DModel, ResnetBlock2D, Downsample2D,
    # Upsample2D, CLIPAttention or CLIPMLP; so not a UNet's first and last layers and its time embedding.
    "all": r".*\.(attentions|resnets|downsamplers|upsamplers|self_attn|mlp)\..*",
}
EVERY_LAYER = ".*"  # what `all` was before


@dataclass(frozen=True)
class LowRank:
    """What is added to one layer's weight: `down` is A, `up` is B, in any float type."""

    down: np.ndarray
    up: np.ndarray
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the layer's weight."""
        return (len(self.up), *self.down.shape[1:])

    def with_alpha(self, alpha: float) -> "LowRank":
        """Return the same with another alpha, for which B makes up; itself if B cannot.

        B keeps its type if that holds the new numbers exactly, as it does where they differ by a power of two; else it
        is float32 at least.
        """
        if alpha == self.alpha or 0 in (alpha, self.alpha):
            return self
        wide = np.promote_types(np.float32, self.up.dtype)
        with np.errstate(over="ignore"):
            exact = self.up.astype(wide) * wide.type(self.alpha / alpha)
            up = exact.astype(self.up.dtype)
        if not np.isfinite(exact).all():
            return self
        return LowRank(self.down, up if np.array_equal(up.astype(wide), exact) else exact, alpha)

    def delta(self, weight: float = 1.0) -> np.ndarray:
        """weight (alpha / rank) B A, float32, in the shape of the layer's weight."""
        down, up = (array.astype(np.float32, copy=False).reshape(len(array), -1) for array in (self.down, self.up))
        return (weight * self.alpha / self.rank) * (up @ down).reshape(self.shape)


@dataclass(frozen=True)
class Adapter:
    """The adapter of a run. `shapes`: of the weights of the layers that get one, in diffusers' layout, by
    `component.layer`."""

    rank: int
    alpha: float
    dropout: float
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def layers(self, component: str) -> tuple[str, ...]:
        """Return the names inside a component of its layers that get one."""
        return tuple(name.partition(".")[2] for name in self.shapes if name.startswith(f"{component}."))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all A and B by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (out, *rest) in self.shapes.items():
            shapes[f"{name}.lora_A.weight"] = (self.rank, *rest)
            shapes[f"{name}.lora_B.weight"] = (out, self.rank, *(1 for _ in rest[1:]))
        return shapes

    def initial(self, seed: int) -> dict[str, np.ndarray]:
        """Return a normal with deviation 1 / rank; B zero, so that nothing is changed yet. float32, equal on both
        backends."""
        tensors = {}
        for row, (name, shape) in enumerate(self.tensor_shapes().items()):
            if ".lora_A." in name:
                tensors[name] = randomness.normal(seed, "adapter", 0, row, shape) / np.float32(self.rank)
            else:
                tensors[name] = np.zeros(shape, np.float32)
        return tensors

    def merged(
        self, pipeline: PipelineDir, tensors: Iterable[tuple[str, str, np.ndarray]]
    ) -> Iterator[tuple[str, str, np.ndarray]]:
        """(component, name, array) of A and B -> of all weights of the components that have one, for export."""
        own = {f"{component}.{name}": array for component, name, array in tensors}
        for name in own.keys() - self.tensor_shapes().keys():  # new tokens'
            component, _, rest = name.partition(".")
            yield component, rest, own[name]
        yield from added(pipeline, {layer: [(update, 1.0)] for layer, update in self.updates(own).items()})

    def updates(self, tensors: Mapping[str, np.ndarray]) -> dict[str, LowRank]:
        """By `component.layer`, of A and B by name."""
        return {
            layer: LowRank(tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"], self.alpha)
            for layer in self.shapes
        }


def added(
    pipeline: PipelineDir, updates: Mapping[str, Sequence[tuple[LowRank, float]]]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(component, name, float32 array) of all weights of the components that have updates, which are added to them.

    `updates`: by `component.layer`, with the weight of each.
    """
    for component in sorted({layer.partition(".")[0] for layer in updates}):
        for name, array in pipeline.tensors(component).items():
            array = array.astype(np.float32)
            if name.endswith(".weight"):
                for update, weight in updates.get(f"{component}.{name.removesuffix('.weight')}", ()):
                    array += update.delta(weight).reshape(array.shape)
            yield component, name, array


def adapter_of(
    config: Any, pipeline: PipelineDir, weights: Mapping[str, Mapping[str, tuple[int, ...]]] | None = None
) -> Adapter | None:
    """Return the adapter that a config asks for; None for full fine-tuning. Raise UserError if its rule matches no
    layer.

    `weights`: by component the shapes of its weights in diffusers' layout, if the pipeline's files are not to be read.
    """
    settings = config.adapter
    if settings.kind == "none":
        return None
    rule = re.compile(PRESETS.get(settings.targets, settings.targets))
    shapes: dict[str, tuple[int, ...]] = {}
    for component in trained_networks(config):
        known = layers(weights[component] if weights else weight_shapes(pipeline, component))
        found = {name: shape for name, shape in known.items() if rule.fullmatch(name)}
        if not found:
            ends = sorted({".".join(name.split(".")[-2:]) for name in known})
            raise UserError(
                f"adapter.targets={settings.targets!r} matches no layer of the {component}; take one of"
                f" {', '.join(PRESETS)}, or a regular expression for whole names, such as .*attn2.*; they end in"
                f" {', '.join(ends)}"
            )
        shapes |= {f"{component}.{name}": shape for name, shape in found.items()}
    alpha = settings.rank if settings.alpha == AUTO else settings.alpha
    return Adapter(settings.rank, float(alpha), settings.dropout, shapes)


def as_begun(config: Any, saved: Callable[[], Collection[str]]) -> Any:
    """Return the config of a run with a rule for the layers that its adapters were begun with, by what it `saved`: the
    names of the trainable tensors in a checkpoint. For `all` has meant EVERY_LAYER."""
    if config.adapter.kind == "none" or config.adapter.targets != "all" or not unusual(_adapted(saved())):
        return config
    config = config.copy_and_resolve_references()
    config.adapter.targets = EVERY_LAYER
    return config


def unusual(layers: Iterable[str]) -> list[str]:
    """Return those of the layers, by `component.layer`, whose adapters not all programs read."""
    return [layer for layer in layers if not re.fullmatch(PRESETS["all"], layer)]


def said_of_unusual(layers: Iterable[str]) -> str:
    """Return what there is to say of them, in one line; "" if there are none."""
    if not (found := unusual(layers)):
        return ""
    return (
        f"adapters of {few(found)}: kohya's scripts and stable-diffusion.cpp leave these out of a LoRA file, and so"
        " make other pictures of it than diffusers, ComfyUI and AUTOMATIC1111; adapter.targets=all trains none of them"
    )


def _adapted(names: Iterable[str]) -> set[str]:
    """Return the layers whose adapters tensors are of."""
    return {name.partition(".lora_")[0] for name in names if ".lora_" in name}


def layers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Of a network's weights, by name and shape in diffusers' layout, its linear and convolutional layers."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in sorted(shapes.items())
        if name.endswith(".weight") and len(shape) in (2, 4) and ".embeddings." not in name
    }


def weight_shapes(pipeline: PipelineDir, component: str) -> dict[str, tuple[int, ...]]:
    named = (
        (canonical_name(component, key), spec.shape)
        for specs in pipeline.weights[component].specs.values()
        for key, spec in specs.items()
    )
    return {name: shape for name, shape in named if name}
