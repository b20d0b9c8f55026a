"""Pairs of a reference module and jaxbooth's model with the same random weights, and measures of their differences."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxbooth.models import clip
from jaxbooth.weights import Network, from_diffusers, to_diffusers

OUTPUT_TOLERANCE = 5e-6  # relative to the reference's largest value
GRADIENT_TOLERANCE = 1e-4  # relative to the norm of the parameter's gradient
ZERO_GRADIENT = 1e-6  # relative to the norm of all gradients; a smaller reference gradient is rounding noise


@dataclass
class Pair:
    """A reference module with random weights, and jaxbooth's model of the same config and weights."""

    reference: torch.nn.Module
    model: type[nnx.Module]
    config: Mapping[str, Any]
    tensors: dict[str, np.ndarray] = field(init=False)
    network: Network = field(init=False)
    params: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.reference.parameters():
                if parameter.ndim == 1:  # Norms start at one and zero, so swapped tensors would not show.
                    parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        self.tensors = {
            self.rename(name): tensor.numpy() for name, tensor in self.reference.eval().state_dict().items()
        }
        self.network = Network.build(self.model, self.config)
        self.params = from_diffusers(self.network, self.tensors, "test")

    def rename(self, name: str) -> str:
        """Return the name of a tensor in files: transformers adds a prefix when it writes a text encoder."""
        bare = self.model is clip.CLIPTextModel and not name.startswith("text_model.")
        return f"text_model.{name}" if bare else name

    def run(self, method: Callable, *inputs: Any, **build: Any) -> Any:
        """Compile and call a method of the model, which is built anew so that patches of it have an effect."""
        network = Network.build(self.model, self.config, **build)
        return jax.jit(lambda params, *inputs: method(network.bind(params), *inputs))(self.params, *inputs)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def to_torch(array_bhwc: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array_bhwc).permute(0, 3, 1, 2)


def from_torch(tensor_bchw: torch.Tensor) -> np.ndarray:
    return tensor_bchw.detach().permute(0, 2, 3, 1).numpy()


def output_error(ours: jax.Array, reference: np.ndarray) -> float:
    assert ours.dtype == jnp.float32
    assert ours.shape == reference.shape
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


def gradient_errors(pair: Pair, ours: Mapping[str, jax.Array]) -> dict[str, float]:
    """Return the relative errors of the parameters' gradients, without those whose reference gradient is zero."""
    reference = {pair.rename(name): p.grad.numpy() for name, p in pair.reference.named_parameters()}
    assert ours.keys() == reference.keys()
    floor = ZERO_GRADIENT * np.sqrt(sum(np.square(gradient).sum() for gradient in reference.values()))
    errors = {}
    for name, gradient in reference.items():
        mine = to_diffusers(pair.network, name, ours[name])
        if np.linalg.norm(gradient) > floor:
            errors[name] = float(np.linalg.norm(mine - gradient) / np.linalg.norm(gradient))
        else:
            assert np.linalg.norm(mine) < 2 * floor, f"{name} should have no gradient"
    return errors
