"""The arguments of the step that a plan compiles, as shapes without data."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from booth.config.trained import is_pulled, is_trained, rate_groups, trains_text
from booth.data.inputs import largest_prompts, largest_size
from booth.diffusion.backend import ROW_FIELDS, Batch
from booth.diffusion.sampling import latent_shape
from booth.models.pipeline import PipelineDir
from jaxbooth import optim
from jaxbooth.sharding import parameter_spec, row_spec, state_shardings
from jaxbooth.weights import Network


def bytes_on_a_device(shapes: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)
    )


def shapes_of_arguments(
    config: Any, pipeline: PipelineDir, parts: dict[str, Network], mesh: Mesh, rows_per_device: int
) -> tuple[Any, Any, Any, Batch, Any]:
    """Return the arguments of the step, with shapes in place of arrays; `rows_per_device` are those of one piece."""
    trainable, frozen = {}, {}
    for component in ("unet", "text_encoder") if trains_text(config) else ("unet",):
        for name, shape in parts[component].shapes.items():
            spec = parameter_spec(name, shape.shape, mesh.shape["fsdp"])
            if is_trained(config, f"{component}.{name}"):
                trainable[f"{component}.{name}"] = placed(mesh, shape.shape, spec)
            else:
                dtype = parts[component].dtype if len(shape.shape) > 1 else jnp.float32
                frozen[f"{component}.{name}"] = placed(mesh, shape.shape, spec, dtype)
    states = jax.eval_shape(partial(optim.init, settings=optim.Settings.of(config)), trainable)
    states = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        states,
        state_shardings(mesh, states),
    )
    anchor = {name: shape for name, shape in trainable.items() if is_pulled(config, name)}
    return trainable, states, frozen, batch(config, pipeline, mesh, rows_per_device * mesh.size), anchor


def batch(config: Any, pipeline: PipelineDir, mesh: Mesh, rows: int) -> Batch:
    pieces, latents = config.train.accumulation, latent_shape(pipeline, *largest_size(config, pipeline))
    spec = P(None, *row_spec())
    per_row: Any = {name: placed(mesh, (pieces, rows), spec) for name in ROW_FIELDS}
    per_row |= {name: placed(mesh, (pieces, rows, *latents), spec) for name in ("latents", "noise")}
    per_row["mask"] = placed(mesh, (pieces, rows, *((1,) * len(latents))), spec)
    per_row |= {name: placed(mesh, (pieces, rows), spec, jnp.int32) for name in ("timestep", "prompt_index")}
    prompts = largest_prompts(config)
    tokens = pipeline.component_config("text_encoder")["max_position_embeddings"]
    width = pipeline.component_config("unet")["cross_attention_dim"]
    return Batch(
        **per_row,
        prompts=(
            placed(mesh, (prompts, tokens), P(), jnp.int32)
            if trains_text(config)
            else placed(mesh, (prompts, tokens, width), P())
        ),
        learning_rate={component: placed(mesh, (), P()) for component in rate_groups(config)},
        key=placed(mesh, (), P(), jnp.int32),
        loss=config.train.loss,
    )


def placed(mesh: Mesh, shape: tuple[int, ...], spec: P, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def resident_bytes(parts: dict[str, Network], trained: tuple[str, ...], mesh: Mesh) -> int:
    """Return the bytes on a device of the networks that do not train, which stay there during the step."""
    return bytes_on_a_device(
        [
            placed(mesh, shape.shape, parameter_spec(name, shape.shape, mesh.shape["fsdp"]))
            for component, network in parts.items()
            if component not in trained
            for name, shape in network.shapes.items()
        ]
    )
