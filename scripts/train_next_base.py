"""Train the next embedded base on `drawn_world`, from nothing to a pipeline; an interrupted training continues.

    python scripts/train_next_base.py --work runs/next-base

Stages, each of which leaves a file in --work: pictures, the autoencoder, latents, UNet and text encoder. log.txt has
what was measured, and autoencoder.png and looks/ show it.
"""

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from base_training.denoiser import TEXT_ENCODER, Networks, train_denoiser
from diffusers import AutoencoderKL, StableDiffusionPipeline
from drawn_world.captions import caption, training_caption
from drawn_world.individuals import ANY, CLASSES, PAIRS
from drawn_world.settings import SETTINGS
from drawn_world.world import SIDE, example, render
from make_pipeline import SIZES, build_tokenizer
from next_base.autoencoder import encoded, object_psnr, through, train_autoencoder
from next_base.denoiser import networks_begun_from_the_base
from PIL import Image
from tqdm import tqdm
from train_base import as_pipeline

WORLD_SEED, HELD_OUT_SEED, ANY_COLOURS_SEED = 0, 1, 2
CHUNK = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder for everything that is kept between stages")
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--autoencoder-steps", type=int, default=8_000)
    parser.add_argument("--denoiser-cycles", type=int, nargs="+", default=[10_000, 6_000], help="steps of each cycle")
    parser.add_argument("--vae", type=Path, help="folder of a trained autoencoder, to begin with the latents")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    # The autoencoder sees any colours beside each other: trained on the world's pairs alone, it drew the example
    # subjects, whose pairs are others, 3 dB worse than other held-out individuals.
    any_colours = drawn(options.work / "any_colours.npy", ANY_COLOURS_SEED, options.pictures, ANY)
    held_out = drawn(options.work / "held_out.npy", HELD_OUT_SEED, 512, ANY)

    def look(step: int, vae: torch.nn.Module) -> None:
        some = np.array(held_out[:128])
        decoded = through(vae, some)
        line = f"autoencoder step {step}: objects {object_psnr(decoded, some).mean():.2f} dB"
        with (options.work / "log.txt").open("a") as log:
            log.write(line + "\n")
        tqdm.write(line)
        sheet(some[:30], decoded[:30], options.work / "autoencoder.png")

    vae = options.work / "vae"
    if not options.vae and not (vae / "config.json").is_file():
        trained = train_autoencoder(
            any_colours, options.autoencoder_steps, options.seed, options.work / "autoencoder.pt", look
        )
        trained.half().save_pretrained(vae)
    pictures = drawn(options.work / "pictures.npy", WORLD_SEED, options.pictures)
    train_networks(options, AutoencoderKL.from_pretrained(options.vae or vae).float().eval(), pictures)


def train_networks(options: argparse.Namespace, vae: AutoencoderKL, drawn: np.ndarray) -> None:
    """Train UNet and text encoder on the latents of all pictures, and write the pipeline."""
    moments = options.work / "moments.npy"
    if not moments.is_file():
        parts = encoded(vae, np.array(drawn))
        both = torch.stack([torch.cat([mean for mean, _ in parts]), torch.cat([std for _, std in parts])])
        np.save(moments, (both * vae.config.scaling_factor).half().numpy())
    shares = drawn[..., 3].reshape(len(drawn), SIDE // 4, 4, SIDE // 4, 4).mean((2, 4), dtype=np.float32) / 255
    tokenizer = build_tokenizer(TEXT_ENCODER["vocab_size"], **SIZES["tiny"]["tokenizer"])
    (options.work / "looks").mkdir(exist_ok=True)

    def look(step: int, networks: Networks) -> None:
        image = Image.fromarray(samples(as_pipeline(networks, vae, tokenizer)))
        image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(
            options.work / "looks" / f"{step:06d}.png"
        )

    networks = train_denoiser(
        np.load(moments, mmap_mode="r"),
        shares.astype(np.float16),
        partial(training_caption, WORLD_SEED),
        tokenizer,
        options.denoiser_cycles,
        options.seed,
        options.work / "denoiser.pt",
        look,
        networks_begun_from_the_base(vae.config.latent_channels),
    )
    as_pipeline(networks, vae, tokenizer).save_pretrained(options.work / "pipeline")


def samples(pipeline: StableDiffusionPipeline) -> np.ndarray:
    """Return a picture of every class in every setting, unpicked, uint8 [h, w, 3]."""
    rows = []
    for number, name in enumerate(CLASSES):
        prompts = [caption(name, setting) for setting in SETTINGS]
        generators = [torch.Generator().manual_seed(100 * number + place) for place in range(len(prompts))]
        made = pipeline(prompts, num_inference_steps=20, guidance_scale=2.0, generator=generators, output_type="np")
        rows.append(np.hstack(list((made.images * 255).round().astype(np.uint8))))
    return np.vstack(rows)


def drawn(path: Path, seed: int, count: int, pairs: Sequence[tuple[str, str]] = PAIRS) -> np.ndarray:
    """Return the first `count` examples of a world, uint8 [count, 64, 64, 4]; draw them if the file does not exist."""
    if not path.is_file():
        pictures = np.empty((count, SIDE, SIDE, 4), np.uint8)
        chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
        # spawn, because a process that has computed with torch must not be forked
        with (
            ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool,
            tqdm(total=count, desc="drawing", unit="picture") as progress,
        ):
            for chunk, part in zip(chunks, pool.map(_draw, repeat(seed), chunks, repeat(pairs)), strict=True):
                pictures[chunk.start : chunk.stop] = part
                progress.update(len(part))
        staging = path.with_suffix(".new.npy")
        np.save(staging, pictures)
        staging.replace(path)
    return np.load(path, mmap_mode="r")


def _draw(seed: int, indices: range, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    return np.stack([render(*example(seed, index, pairs)) for index in indices])


def sheet(pictures: np.ndarray, decoded: np.ndarray, path: Path, columns: int = 6) -> None:
    """Write pictures beside their reconstructions, each pair enlarged three times without smoothing."""
    pairs = [np.hstack([drawn_one[..., :3], back]) for drawn_one, back in zip(pictures, decoded, strict=True)]
    pairs += [np.zeros_like(pairs[0])] * (-len(pairs) % columns)
    rows = [np.hstack(pairs[start : start + columns]) for start in range(0, len(pairs), columns)]
    image = Image.fromarray(np.vstack(rows))
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    main()
