"""One update: forward over instance and class rows, the loss, backward, clip, AdamW. A pure function."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from booth.diffusion.backend import ROW_FIELDS, STATIC_FIELDS, Batch
from booth.diffusion.objective import dreambooth_loss, noisy_latents
from jaxbooth import optim
from jaxbooth.ema import Average
from jaxbooth.networks import Models, of
from jaxbooth.optim import Params, Settings, clip_by_global_norm
from jaxbooth.sharding import batch_specs, gathered, over_rows, parameter_specs, state_shardings, summed, summed_rows
from jaxbooth.weights import Network

jax.tree_util.register_dataclass(
    Batch, [each.name for each in fields(Batch) if each.name not in STATIC_FIELDS], STATIC_FIELDS
)


@dataclass(frozen=True)
class State:
    """The training state. `models` has all networks, without the arrays in `trainable`. These are in float32 by
    `component.name`: all weights of the networks that train, or those of their adapters.

    `optimizer` has the moments, and is None if the state is not training. `average` is the average of `trainable`, and
    `anchor` the weights that `train.pull` pulls towards, by the same names; each may be missing.
    """

    models: Models
    trainable: Params
    optimizer: optax.OptState
    average: Average | None = None
    anchor: Params = field(default_factory=dict)


def init_optimizer(trainable: Params, settings: Settings, mesh: Mesh) -> optax.OptState:
    """Return the optimizer's states before the first update, each placed like its parameter."""
    init = partial(optim.init, settings=settings)
    return jax.jit(init, out_shardings=state_shardings(mesh, jax.eval_shape(init, trainable)))(trainable)


@partial(
    jax.jit, static_argnames=("unet", "text_encoder", "settings", "mesh"), donate_argnames=("trainable", "optimizer")
)
def train_step(
    trainable: Params,
    optimizer: optax.OptState,
    frozen: Params,
    batch: Batch,
    anchor: Params,
    *,
    unet: Network,
    text_encoder: Network,
    settings: Settings,
    mesh: Mesh,
) -> tuple[Params, optax.OptState, dict[str, jax.Array]]:
    """Return (trainable, optimizer states, metrics) after one update; the metrics are float32 scalars.

    `frozen` has the other weights of the networks that train: all of them, if only adapters train. `anchor` is as in
    `optim.update`.

    The rows of the batch are [pieces, rows, ...]. Gradients come from `sharding.over_rows`; clipping and the update are
    done on the device that has each part of a parameter. The new state is pinned to the places of the old one;
    otherwise the second step would be compiled again. If the loss or a gradient is not finite, it equals the old one.
    """
    gradients, metrics = _gradients(trainable, frozen, batch, unet, text_encoder, mesh)
    gradients, metrics["grad_norm"] = clip_by_global_norm(gradients, settings.max_grad_norm)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"] ** 2)  # the moments need the square
    metrics["skipped"] = 1.0 - finite
    updated = optim.update(trainable, optimizer, gradients, batch.learning_rate, anchor, settings)
    state = jax.tree.map(partial(jnp.where, finite), updated, (trainable, optimizer))
    trainable, optimizer = jax.lax.with_sharding_constraint(state, state_shardings(mesh, state))
    return trainable, optimizer, metrics


def _gradients(
    trainable: Params, frozen: Params, batch: Batch, unet: Network, text_encoder: Network, mesh: Mesh
) -> tuple[Params, dict[str, jax.Array]]:
    """Return the gradients and metrics of a batch: the sums over its rows."""
    specs, frozen_specs = parameter_specs(mesh, trainable), parameter_specs(mesh, frozen)
    local = partial(_local_gradients, specs=specs | frozen_specs, unet=unet, text_encoder=text_encoder)
    return over_rows(mesh, local, (specs, frozen_specs, batch_specs(batch)), (specs, P()))(trainable, frozen, batch)


def _local_gradients(
    trainable: Params, frozen: Params, batch: Batch, *, specs: dict[str, P], unet: Network, text_encoder: Network
) -> tuple[Params, dict[str, jax.Array]]:
    """Return the gradients and metrics on one device, from its rows and its part of the parameters."""

    def bind(network: Network, component: str, params: Params, row_numbers: Callable[[], jax.Array]) -> Any:
        keys = _row_keys(batch, row_numbers()) if network.dropout > 0 else None
        return network.bind(gathered(of(frozen, component) | params, of(specs, component), network.dtype), keys)

    def encode(params: Params) -> jax.Array:
        if batch.prompts.ndim == 3:
            return batch.prompts  # encoded already
        return bind(text_encoder, "text_encoder", params, lambda: jnp.arange(len(batch.prompts)))(batch.prompts)

    def loss_of(params: Params, context: jax.Array, piece: Batch) -> tuple[jax.Array, dict[str, Any]]:
        # The noise identifies a row, on whatever device and in whatever piece it is computed.
        network = bind(unet, "unet", params, lambda: jax.lax.bitcast_convert_type(piece.noise[:, 0, 0, 0], jnp.uint32))
        prediction = network(noisy_latents(piece), piece.timestep, context[piece.prompt_index])
        return dreambooth_loss(prediction.astype(jnp.float32), piece)

    # The text encoder runs once per update, forward and backward, for any number of rows and pieces.
    context, backward_to_text = jax.vjp(encode, of(trainable, "text_encoder"))

    def of_piece(rows: Any) -> Any:
        piece = replace(batch, **rows)
        return jax.grad(loss_of, argnums=(0, 1), has_aux=True)(of(trainable, "unet"), context, piece)

    pieces = {name: getattr(batch, name) for name in ROW_FIELDS}
    (unet_gradients, context_gradient), metrics = _sum_over_pieces(of_piece, pieces)
    (text_gradients,) = backward_to_text(context_gradient)
    by_component = {"unet": unet_gradients, "text_encoder": text_gradients}
    gradients = {
        f"{component}.{name}": value for component, grads in by_component.items() for name, value in grads.items()
    }
    return summed(gradients, specs), summed_rows(metrics)


def _row_keys(batch: Batch, rows: jax.Array) -> jax.Array:
    """Return a key for each of these rows, which are given as numbers [b]. Keys are new in each update."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(batch.key)))(rows)


def _sum_over_pieces(function: Any, pieces: dict[str, jax.Array]) -> Any:
    """Return function(piece 0) + function(piece 1) + ..., in a loop, so that the activations of only one piece are in
    memory at a time."""
    first = {name: rows[0] for name, rows in pieces.items()}
    if pieces["weight"].shape[0] == 1:
        return function(first)

    def add(total: Any, piece: dict[str, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(piece)), None

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, first))
    return jax.lax.scan(add, zeros, pieces)[0]
