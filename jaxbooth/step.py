"""One update: forward over instance and class rows, the loss, backward, clip, AdamW. A pure function."""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from booth.backend import Batch
from booth.objective import dreambooth_loss, noisy_latents
from jaxbooth.networks import Models, of
from jaxbooth.optim import Settings, adamw, clip_by_global_norm
from jaxbooth.sharding import state_shardings
from jaxbooth.weights import Network

jax.tree_util.register_dataclass(Batch, [field.name for field in fields(Batch)], [])


@dataclass(frozen=True)
class State:
    """`frozen`: all networks, without the arrays of `trainable`, which are float32 by `component.name`.

    `optimizer`: Adam's moments; None in a state that is not training.
    """

    frozen: Models
    trainable: dict[str, jax.Array]
    optimizer: optax.OptState


def init_optimizer(trainable: dict[str, jax.Array], settings: Settings, mesh: Mesh) -> optax.OptState:
    """Adam's moments at zero, each placed as the parameter it belongs to."""
    init = adamw(settings).init
    return jax.jit(init, out_shardings=state_shardings(mesh, jax.eval_shape(init, trainable)))(trainable)


@partial(jax.jit, static_argnames=("unet", "settings", "mesh"), donate_argnames=("trainable", "optimizer"))
def train_step(
    trainable: dict[str, jax.Array],
    optimizer: optax.OptState,
    batch: Batch,
    *,
    unet: Network,
    settings: Settings,
    mesh: Mesh,
) -> tuple[dict[str, jax.Array], optax.OptState, dict[str, jax.Array]]:
    """(trainable, optimizer states, metrics) after one update; the metrics are float32 scalars.

    Sharded inputs give a sharded step: the compiler derives every collective from where parameters and rows are. The
    new state is pinned to the places of the old one; otherwise the second step would be compiled anew.
    """

    def loss_of(trainable: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, Any]]:
        model = unet.bind(of(trainable, "unet"))
        context = batch.context[batch.prompt_index]
        prediction = model(noisy_latents(batch), batch.timestep, context)
        return dreambooth_loss(prediction.astype(jnp.float32), batch)

    gradients, metrics = jax.grad(loss_of, has_aux=True)(trainable)
    gradients, metrics["grad_norm"] = clip_by_global_norm(gradients, settings.max_grad_norm)
    updates, optimizer = adamw(settings).update(gradients, optimizer, trainable)
    trainable = jax.tree.map(lambda value, update: value - batch.learning_rate * update, trainable, updates)
    state = trainable, optimizer
    trainable, optimizer = jax.lax.with_sharding_constraint(state, state_shardings(mesh, state))
    return trainable, optimizer, metrics
