"""The mapping of weights: diffusers <-> Flax, total and invertible.

The modules are named as in diffusers, so only the last part of a name and the layout of its array differ:

    diffusers                         Flax
    linear  .weight [out, in]         .kernel [in, out]
    conv    .weight [out, in, h, w]   .kernel [h, w, in, out]
    norm    .weight [c]               .scale [c]
    table   .weight [rows, d]         .embedding [rows, d]
    all     .bias [c]                 .bias [c]

Outside this file and the models, parameters are a flat dict: diffusers' name -> array in Flax's layout.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import PathParts
from jax.typing import DTypeLike

from booth.models.weight_names import fit_weights
from jaxbooth import adapters, tokens

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# The order of a kernel's axes in diffusers, by its number of dimensions.
_KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


@dataclass(frozen=True, eq=False)
class Network:
    """A model without its parameters.

    Attributes:
        shapes: diffusers' name -> shape (in Flax's layout) and dtype of every parameter.
        axes: diffusers' name -> the axes of the Flax array in diffusers' order.
        dtype: the compute dtype.
        dropout: the share of the adapters' inputs that is set to 0 if `bind` is given `row_keys`.
    """

    shapes: dict[str, jax.ShapeDtypeStruct]
    axes: dict[str, tuple[int, ...]]
    dtype: DTypeLike
    dropout: float
    _adapted: tuple[str, ...]
    _paths: dict[str, PathParts]
    _graphdef: nnx.GraphDef

    @classmethod
    def build(
        cls,
        model: type[nnx.Module],
        config: Mapping[str, Any],
        *,
        adapted: Collection[str] = (),
        rank: int = 0,
        scale: float = 1.0,
        dropout: float = 0.0,
        new_tokens: int = 0,
        dtype: DTypeLike = jnp.float32,
        **kw: Any,
    ) -> "Network":
        """Build `model(config, dtype=dtype, **kw)`; allocate nothing and compile nothing.

        The layers `adapted` get an adapter of this rank, scale and dropout, whose parameters have the names of PEFT; a
        text encoder gets rows for the number of new tokens.

        Raise:
            UserError: if the model does not support the config.
        """
        built: Any = model(config, dtype=dtype, **kw)  # type: ignore[call-arg]
        for name in adapted:
            adapters.add(_layer(built, name), rank, scale, dropout)
        if new_tokens:
            tokens.add(built, new_tokens)
        graphdef, state = nnx.split(built)
        network = cls({}, {}, dtype, dropout, tuple(adapted), {}, graphdef)
        for path, parameter in nnx.to_flat_state(state):
            name = ".".join(str(part) for part in (*path[:-1], _LEAF_NAMES[str(path[-1])]))
            shape = parameter.get_value()
            network.shapes[name] = shape
            network.axes[name] = (
                _KERNEL_AXES[len(shape.shape)] if path[-1] == "kernel" else tuple(range(len(shape.shape)))
            )
            network._paths[name] = path
        return network

    def bind(self, params: Mapping[str, jax.Array], row_keys: jax.Array | None = None) -> Any:
        """Return the model with these parameters, ready to be called.

        Meant for the inside of a jitted function, where it costs trace time only:
        `unet.bind(params)(latents_bhwc, timesteps_b, context_btd)`.

        Args:
            params: an array in Flax's layout for each name in `shapes`, of any floating dtype.
            row_keys: [b], one for each row of its input, for the adapters' dropout; None for no dropout.
        """
        leaves: dict[PathParts, Any] = {path: params[name] for name, path in self._paths.items()}
        model: Any = nnx.merge(self._graphdef, nnx.from_flat_state(leaves))
        if row_keys is not None:
            for number, name in enumerate(self._adapted):
                _layer(model, name).row_keys = jax.vmap(partial(jax.random.fold_in, data=number))(row_keys)
        return model


def _layer(model: Any, name: str) -> Any:
    """Return a module's layer by its dotted name."""
    for part in name.split("."):
        model = model[int(part)] if part.isdecimal() else getattr(model, part)
    return model


def from_diffusers(network: Network, tensors: Mapping[str, np.ndarray], component: str) -> dict[str, np.ndarray]:
    """Convert all tensors of a component.

    Args:
        network: the model they are for.
        tensors: diffusers' name -> array in diffusers' layout, of any floating dtype.
        component: the name used in errors, such as `unet`.

    Return:
        Name -> float32 array in Flax's layout, for `Network.bind`.

    Raise:
        UserError: if names are missing or left over, or a shape is not the expected one.
    """
    shapes = to_diffusers_shapes(network)
    return {name: to_flax(network, name, tensor) for name, tensor in fit_weights(component, tensors, shapes).items()}


def to_flax(network: Network, name: str, array: np.ndarray) -> np.ndarray:
    """Convert one tensor, [...] in diffusers' layout, to Flax's."""
    return np.ascontiguousarray(array.transpose(np.argsort(network.axes[name])))


def to_diffusers_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the shape in diffusers' layout of each parameter."""
    return {name: tuple(network.shapes[name].shape[axis] for axis in axes) for name, axes in network.axes.items()}


def to_diffusers(network: Network, name: str, array: np.ndarray) -> np.ndarray:
    """Convert one tensor back: the inverse of `from_diffusers`, to the bit.

    Args:
        network: the model that has the tensor.
        name: the tensor's diffusers name.
        array: the tensor, or another array of its shape (a gradient, an average), in Flax's layout.

    Return:
        The array in diffusers' layout, in its own dtype.
    """
    return np.ascontiguousarray(np.asarray(array).transpose(network.axes[name]))
