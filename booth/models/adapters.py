"""The adapters: LoRA (arXiv 2106.09685). Which layers get an adapter, its shapes and first values, how it is merged.

A layer's weight W acts as W + (alpha / rank) B A, where only A [rank, in] and B [out, rank] train. For a convolution,
A is a convolution too, [rank, in, h, w], and B is a 1x1 convolution. Tensors have the names that PEFT gives them:
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

# Names for rules, which are regular expressions that must match the whole name of a layer.
PRESETS = {
    "cross_attention": r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)",
    "attention": rf".*{_ATTENTION}",
    "feed_forward": rf".*({_ATTENTION}|{_FEED_FORWARD})",
    # The layers that kohya's scripts adapt, with convolutions: all in a Transformer2DModel, ResnetBlock2D,
    # Downsample2D, Upsample2D, CLIPAttention or CLIPMLP; so not a UNet's first and last layers or its time embedding.
    "all": r".*\.(attentions|resnets|downsamplers|upsamplers|self_attn|mlp)\..*",
}
EVERY_LAYER = ".*"  # the meaning of `all` in older runs


@dataclass(frozen=True)
class LowRank:
    """The update of one layer's weight: `down` is A, `up` is B, in any float type."""

    down: np.ndarray
    up: np.ndarray
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the layer's weight."""
        return (len(self.up), *self.down.shape[1:])

    def with_alpha(self, alpha: float) -> "LowRank":
        """Return the same update with another alpha and B scaled to match; return `self` if B cannot be scaled so.

        B keeps its type if that type holds the new numbers exactly, as it does when they differ by a power of two;
        otherwise B becomes float32 or wider.
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
        """Return weight (alpha / rank) B A in float32, in the shape of the layer's weight."""
        down, up = (array.astype(np.float32, copy=False).reshape(len(array), -1) for array in (self.down, self.up))
        return (weight * self.alpha / self.rank) * (up @ down).reshape(self.shape)


@dataclass(frozen=True)
class Adapter:
    """The adapter of a run. `shapes` holds, by `component.layer`, the shape in diffusers' layout of the weight of each
    layer that gets an adapter."""

    rank: int
    alpha: float
    dropout: float
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def layers(self, component: str) -> tuple[str, ...]:
        """Return the names, inside a component, of the layers that get an adapter."""
        return tuple(name.partition(".")[2] for name in self.shapes if name.startswith(f"{component}."))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all A and B by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (out, *rest) in self.shapes.items():
            shapes[f"{name}.lora_A.weight"] = (self.rank, *rest)
            shapes[f"{name}.lora_B.weight"] = (out, self.rank, *(1 for _ in rest[1:]))
        return shapes

    def initial(self, seed: int) -> dict[str, np.ndarray]:
        """Return the first values in float32, equal on both backends: A is normal with deviation 1 / rank, and B is
        zero, so that the adapter changes nothing yet."""
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
        """Yield (component, name, array) of all weights of the adapted components, for export.

        `tensors` are those of A and B, and of new tokens, which are yielded as they are.
        """
        own = {f"{component}.{name}": array for component, name, array in tensors}
        for name in own.keys() - self.tensor_shapes().keys():  # rows of new tokens
            component, _, rest = name.partition(".")
            yield component, rest, own[name]
        yield from added(pipeline, {layer: [(update, 1.0)] for layer, update in self.updates(own).items()})

    def updates(self, tensors: Mapping[str, np.ndarray]) -> dict[str, LowRank]:
        """Return the updates by `component.layer`, made of the tensors of A and B by name."""
        return {
            layer: LowRank(tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"], self.alpha)
            for layer in self.shapes
        }


def added(
    pipeline: PipelineDir, updates: Mapping[str, Sequence[tuple[LowRank, float]]]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (component, name, float32 array) of all weights of the components that have updates, with these added.

    `updates` holds, by `component.layer`, the updates and the weight of each.
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

    `weights` holds the shapes of each component's weights in diffusers' layout; without it the pipeline's files are
    read.
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
    """Return the config of a resumed run, whose rule matches the layers that its adapters were made for.

    In older runs the rule `all` meant EVERY_LAYER. `saved` returns the names of the trainable tensors in a checkpoint,
    which show what it meant.
    """
    if config.adapter.kind == "none" or config.adapter.targets != "all" or not unusual(_adapted(saved())):
        return config
    config = config.copy_and_resolve_references()
    config.adapter.targets = EVERY_LAYER
    return config


def unusual(layers: Iterable[str]) -> list[str]:
    """Return the layers, of these `component.layer`, whose adapters some programs do not read."""
    return [layer for layer in layers if not re.fullmatch(PRESETS["all"], layer)]


def said_of_unusual(layers: Iterable[str]) -> str:
    """Return one line of advice about the unusual layers among these; "" if there are none."""
    if not (found := unusual(layers)):
        return ""
    return (
        f"adapters of {few(found)}: kohya's scripts and stable-diffusion.cpp ignore these in a LoRA file, and so make"
        " other pictures with it than diffusers, ComfyUI and AUTOMATIC1111; adapter.targets=all trains none of them"
    )


def _adapted(names: Iterable[str]) -> set[str]:
    """Return the layers to whose adapters these tensors belong."""
    return {name.partition(".lora_")[0] for name in names if ".lora_" in name}


def layers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return a network's linear and convolutional layers by name, each with the shape of its weight.

    `shapes` are the shapes of all its weights by name, in diffusers' layout.
    """
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
