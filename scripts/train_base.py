"""Train the embedded base: a small Stable Diffusion pipeline that knows the picture world.

    python scripts/train_base.py --work base --out booth/embedded_base

About 90 minutes on two CPU cores. Every stage leaves its result in --work, and the same command goes on where it
was interrupted; --work/looks shows pictures of the UNet as it learns.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from base_training.autoencoder import encode, polish_decoder, train_autoencoder
from base_training.denoiser import SCHEDULER, TEXT_ENCODER, Networks, train_denoiser
from base_training.pictures import draw_masks, draw_pictures
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from make_pipeline import SIZES, build_scheduler, build_tokenizer, write_pipeline
from picture_world.captions import caption
from picture_world.settings import SETTINGS
from picture_world.world import CLASSES
from PIL import Image
from tqdm import tqdm

from booth.rundir import publish

PICTURES, POLISHED_ON, SIZE = 60_000, 20_000, 64
AUTOENCODER_STEPS, DENOISER_STEPS, DECODER_STEPS = 3_000, 6_000, 2_000


def train_base(
    work: Path, out: Path, seed: int, pictures: int, autoencoder_steps: int, denoiser_steps: int, decoder_steps: int
) -> Path:
    """Runs the stages that are not yet in `work` and writes the pipeline, in float16, to `out`."""
    if out.exists():
        raise SystemExit(f"--out {out} exists already; remove it, or give another folder")
    work.mkdir(parents=True, exist_ok=True)
    drawn = _once(work / "pictures.npy", lambda: draw_pictures(seed, pictures, SIZE))
    if not (work / "vae").is_dir():
        with publish(work / "vae") as staging:
            train_autoencoder(drawn, autoencoder_steps, seed).save_pretrained(staging)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    moments = _once(work / "moments.npy", lambda: _scaled_moments(vae, drawn))
    tokenizer = build_tokenizer(TEXT_ENCODER["vocab_size"], **SIZES["tiny"]["tokenizer"])

    def look(step: int, networks: Networks) -> None:
        (work / "looks").mkdir(exist_ok=True)
        Image.fromarray(sheet(_pipeline(networks, vae, tokenizer))).save(work / "looks" / f"{step:06d}.png")

    networks = train_denoiser(moments[0], moments[1], seed, tokenizer, denoiser_steps, seed, work / "denoiser.pt", look)
    if not (work / "polished").is_dir():
        masks = _once(work / "masks.npy", lambda: draw_masks(seed, min(pictures, POLISHED_ON), SIZE))
        polish_decoder(vae, drawn, masks, moments, decoder_steps, seed)
        with publish(work / "polished") as staging:
            vae.save_pretrained(staging)
    vae = AutoencoderKL.from_pretrained(work / "polished").eval()
    parts = {"unet": networks.unet, "vae": vae, "text_encoder": networks.text_encoder}
    with publish(out) as staging:
        halves = {name: network.to(torch.float16) for name, network in parts.items()}
        write_pipeline(staging, halves, tokenizer, build_scheduler(SCHEDULER))
    return out


def _once(path: Path, make) -> np.ndarray:
    """The array in a file, made first if it is not there."""
    if not path.exists():
        with publish(path) as staging, staging.open("wb") as file:
            np.save(file, make())
    return np.load(path, mmap_mode="r")


def _scaled_moments(vae: AutoencoderKL, drawn: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of all pictures' scaled posteriors, float16 [2, n, 4, h, w]."""
    batches = tqdm(encode(vae, drawn), desc="encoding", total=-(-len(drawn) // 64), unit="batch")
    mean, std = zip(*((mean.half(), std.half()) for mean, std in batches), strict=True)
    return (torch.stack([torch.cat(mean), torch.cat(std)]) * vae.config.scaling_factor).numpy()


def _pipeline(networks: Networks, vae: AutoencoderKL, tokenizer) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=networks.text_encoder,
        unet=networks.unet,
        tokenizer=tokenizer,
        scheduler=DPMSolverMultistepScheduler.from_config(build_scheduler(SCHEDULER).config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sheet(pipeline: StableDiffusionPipeline, guidance: float = 4.0) -> np.ndarray:
    """Every class in one setting and every setting with one class, uint8 [h, w, 3]: what the base can do so far."""
    classes, settings = tuple(CLASSES), tuple(SETTINGS)
    prompts = [caption(name, settings[i]) for i, name in enumerate(classes)] + ["a photo of a robot"]
    prompts += [caption(classes[i * 5 % len(classes)], setting) for i, setting in enumerate(settings)]
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    pictures = pipeline(
        prompts, num_inference_steps=20, guidance_scale=guidance, generator=generators, output_type="np"
    ).images
    rows = (pictures.reshape(2, -1, *pictures.shape[1:]) * 255).round().astype(np.uint8)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what the stages leave")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--autoencoder-steps", type=int, default=AUTOENCODER_STEPS)
    parser.add_argument("--denoiser-steps", type=int, default=DENOISER_STEPS)
    parser.add_argument("--decoder-steps", type=int, default=DECODER_STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    train_base(
        arguments.work,
        arguments.out,
        arguments.seed,
        arguments.pictures,
        arguments.autoencoder_steps,
        arguments.denoiser_steps,
        arguments.decoder_steps,
    )
