"""Predict the peak memory of a training step and of a preview of jaxbooth at the size of a real model.

    python scripts/check_preview_memory.py                            # compiles at full size: some ten minutes
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python scripts/check_preview_memory.py --rows 8 --fsdp 8

The functions of jaxbooth are compiled for abstract arrays, and the compiler (XLA for CPUs; others differ) says how much
memory they need on a device. Each line is the memory at the worst moment, including weights and optimizer states, which
also exist while a preview is made. The exit code is 1 if a preview needs more than a training step. For torchbooth use
the command `plan`.
"""

import argparse
import sys
from typing import Any

import numpy as np
from make_pipeline import SIZES

from booth.config.values import default_config
from booth.data.inputs import preview_batch_size
from booth.diffusion.backend import ROW_FIELDS, Batch
from booth.diffusion.solvers import HISTORY, SamplingTable, solver_table

TOKENS = 77


def dimensions(size: str) -> tuple[int, int]:
    """Return (side of the latents, width of a text embedding)."""
    return SIZES[size]["unet"]["sample_size"], SIZES[size]["unet"]["cross_attention_dim"]


def make_batch(size: str, rows: int) -> Batch:
    """Return a batch of zeros; only its shapes and types matter."""
    side, width = dimensions(size)
    latents, row = np.zeros((rows, side, side, 4), np.float32), np.zeros(rows, np.float32)
    arrays: dict[str, Any] = dict.fromkeys(ROW_FIELDS, row)
    arrays |= {"latents": latents, "noise": latents, "prompts": np.zeros((2, TOKENS, width), np.float32)}
    arrays["mask"] = np.ones((rows, 1, 1, 1), np.float32)
    arrays |= {name: np.zeros(rows, np.int32) for name in ("timestep", "prompt_index")}
    return Batch(**arrays, learning_rate={"unet": np.zeros((), np.float32)})


def preview_table(config: Any, size: str) -> SamplingTable:
    """Return a table of two steps, which are enough: the first has no result of an earlier step, the second has one."""
    return solver_table(SIZES[size]["scheduler"], config.samples.solver, config.samples.inference_steps)[:2]


def with_jax(config: Any, size: str, rows: int) -> dict[str, float]:
    """Return {work: bytes on a device} as XLA for CPUs plans them."""
    import jax

    from jaxbooth import optim, sample, step
    from jaxbooth.models.clip import CLIPTextModel
    from jaxbooth.models.unet import UNet2DConditionModel
    from jaxbooth.models.vae import AutoencoderKL
    from jaxbooth.sharding import make_mesh, place_batch, row_sharding, state_shardings
    from jaxbooth.weights import Network

    jax.config.update("jax_default_matmul_precision", "highest")
    settings, mesh = optim.Settings.of(config), make_mesh(config.mesh.fsdp)
    options = {
        "dtype": jax.numpy.bfloat16 if config.train.precision == "bf16" else jax.numpy.float32,
        "remat": config.train.gradient_checkpointing == "block",
    }
    unet = Network.build(UNet2DConditionModel, SIZES[size]["unet"], **options)
    vae = Network.build(AutoencoderKL, SIZES[size]["vae"])
    text_encoder = Network.build(CLIPTextModel, SIZES[size]["text_encoder"])

    def placed(tree: Any) -> Any:
        """Return abstract arrays with the shardings of the parameters of the same names."""
        place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
        return jax.tree.map(place, tree, state_shardings(mesh, tree))

    def spread(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, np.float32, sharding=row_sharding(mesh))

    def held(tree: Any) -> int:
        """Return the bytes of a tree on one device."""
        leaves = jax.tree.leaves(tree)
        return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)

    trainable = placed({f"unet.{name}": shape for name, shape in unet.shapes.items()})
    moments = placed(jax.eval_shape(lambda params: optim.init(params, settings), trainable))
    networks = {"unet": unet, "text_encoder": text_encoder, "settings": settings, "mesh": mesh}
    weights = {"unet": placed(dict(unet.shapes)), "vae": placed(dict(vae.shapes))}
    always = held((trainable, moments, weights["vae"], placed(dict(text_encoder.shapes))))

    def total(lowered: Any) -> int:
        memory = lowered.compile().memory_analysis()
        # Arguments exist already. Results need memory unless they reuse the memory of arguments.
        return always + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes

    batch = place_batch(mesh, make_batch(size, rows), pieces=1)
    side, width = dimensions(size)
    images = -(-preview_batch_size(config) // mesh.size) * mesh.size
    latents, contexts = spread(images, side, side, 4), spread(images, 2, TOKENS, width)
    first, guidance = preview_table(config, size)[0], config.samples.guidance
    asked = (latents, (latents,) * HISTORY, latents, contexts, first, guidance)
    return {
        "training step": total(step.train_step.lower(trainable, moments, {}, batch, {}, **networks)),
        "preview, denoising": total(sample._denoise.lower(weights["unet"], *asked, unet=unet, mesh=mesh)),
        "preview, decoding": total(
            sample._decode.lower(weights["vae"], spread(mesh.size, side, side, 4), vae=vae, mesh=mesh)
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="sd15")
    parser.add_argument("--rows", type=int, default=1, help="train.batch_size; as many class images are added")
    parser.add_argument("--without-prior", action="store_true", help="train without class images")
    parser.add_argument("--fsdp", type=int, default=1, help="mesh.fsdp")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--keep-activations", action="store_true", help="train without gradient checkpointing")
    options = parser.parse_args()
    config = default_config()
    config.train.batch_size, config.mesh.fsdp, config.train.precision = options.rows, options.fsdp, options.precision
    config.train.gradient_checkpointing = "none" if options.keep_activations else "block"
    config.prior.weight = float(not options.without_prior)
    rows = options.rows if options.without_prior else 2 * options.rows
    peaks = with_jax(config, options.size, rows)
    for what, peak in peaks.items():
        print(f"jaxbooth, {options.precision}: {what:<20} {peak / 2**30:7.3f} GiB")
    return int(max(peaks.values()) > peaks["training step"])


if __name__ == "__main__":
    sys.exit(main())
