"""Train the embedded base: a small Stable Diffusion pipeline that knows the picture world.

    python scripts/train_base.py --work runs/base --out runs/base/pipeline

This takes about two and a half hours on two CPU cores; a GPU is used if there is one. Every stage leaves its result in
--work, and the same command continues an interrupted training. Pictures in --work/looks show what the UNet can do while
it learns.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from base_training.autoencoder import CONFIG, encode, polish_decoder, train_autoencoder
from base_training.captions import training_caption
from base_training.denoiser import SCHEDULER, TEXT_ENCODER, Networks, train_denoiser
from base_training.optimization import best_device
from base_training.pictures import draw_pictures
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from make_pipeline import SIZES, build_scheduler, build_tokenizer, write_pipeline
from picture_world.captions import caption
from picture_world.settings import SETTINGS
from picture_world.world import CLASSES
from PIL import Image
from tqdm import tqdm
from transformers import CLIPTokenizer

from booth.common.files import publish, write_text
from booth.data import pictures
from booth.models.plain_opening import name_float32

SIZE = 64  # pixels
CARD = Path(__file__).parent / "base_training" / "model_card.md"


@dataclass(frozen=True)
class Recipe:
    """The numbers that determine a base; the defaults are those of the base that comes with booth."""

    seed: int = 0
    pictures: int = 60_000
    autoencoder_steps: int = 3_000
    denoiser_cycles: tuple[int, ...] = (8_000, 4_000)  # steps of each fall of the learning rate
    decoder_steps: int = 1_200


def train_base(work: Path, out: Path, recipe: Recipe) -> None:
    """Run the stages that are not yet in `work`, and write the pipeline, in float16, to the new folder `out`.

    Raise SystemExit if `out` exists, or if `work` has stages of another recipe.
    """
    if out.exists():
        raise SystemExit(f"--out {out} exists already; remove it, or give another folder")
    _claim(work, recipe)
    drawn = _once(work / "pictures.npy", lambda: draw_pictures(recipe.seed, recipe.pictures, SIZE))
    if not (work / "vae").is_dir():
        with publish(work / "vae") as staging:
            train_autoencoder(drawn, recipe.autoencoder_steps, recipe.seed).save_pretrained(staging)
    vae = _load_autoencoder(work / "vae")
    moments = _once(work / "moments.npy", lambda: _scaled_moments(vae, drawn))
    tokenizer = build_tokenizer(TEXT_ENCODER["vocab_size"], **SIZES["tiny"]["tokenizer"])

    def look(step: int, networks: Networks) -> None:
        pictures.save(Image.fromarray(sheet(as_pipeline(networks, vae, tokenizer))), work / "looks" / f"{step:06d}.png")

    networks = train_denoiser(
        moments,
        _shares(drawn),
        partial(training_caption, recipe.seed),
        tokenizer,
        recipe.denoiser_cycles,
        recipe.seed,
        work / "denoiser.pt",
        look,
    )
    if not (work / "polished").is_dir():
        polish_decoder(vae, drawn, moments, recipe.decoder_steps, recipe.seed)
        with publish(work / "polished") as staging:
            vae.save_pretrained(staging)
    write_base(out, networks, _load_autoencoder(work / "polished"), tokenizer)


def write_base(out: Path, networks: Networks, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> None:
    """Write the pipeline folder, in float16, with its model card."""
    parts = {"unet": networks.unet, "vae": vae, "text_encoder": networks.text_encoder}
    with publish(out) as staging:
        halves = {name: network.to("cpu", torch.float16) for name, network in parts.items()}
        write_pipeline(staging, halves, {"tokenizer": tokenizer}, build_scheduler(SCHEDULER))
        name_float32(staging / "text_encoder")
        shutil.copyfile(CARD, staging / "README.md")


def _claim(work: Path, recipe: Recipe) -> None:
    """Record the recipe in `work`. Raise SystemExit if another recipe is recorded there."""
    note = work / "recipe.json"
    text = json.dumps(asdict(recipe), indent=1) + "\n"
    if note.exists() and (before := json.loads(note.read_text(encoding="utf-8"))) != json.loads(text):
        raise SystemExit(f"--work {work} has stages of another recipe, {before}; give another folder")
    work.mkdir(parents=True, exist_ok=True)
    write_text(note, text)


def _once(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array in a file; make the file first if it does not exist."""
    if not path.exists():
        with publish(path) as staging, staging.open("wb") as file:
            np.save(file, make())
    return np.load(path, mmap_mode="r")


def _load_autoencoder(folder: Path) -> AutoencoderKL:
    """Return the autoencoder in a folder, on the best device.

    It is built anew, because `from_pretrained` would put the folder's path into the config of the exported model.
    """
    saved = AutoencoderKL.from_pretrained(folder)
    vae = AutoencoderKL(**CONFIG, scaling_factor=saved.config.scaling_factor)
    vae.load_state_dict(saved.state_dict())
    return vae.to(best_device()).eval()


def _scaled_moments(vae: AutoencoderKL, drawn: np.ndarray) -> np.ndarray:
    """Return means and standard deviations of the scaled posteriors of all pictures, float16 [2, n, 4, h, w]."""
    batches = tqdm(encode(vae, drawn), desc="encoding", total=-(-len(drawn) // 64), unit="batch")
    mean, std = zip(*batches, strict=True)
    return (torch.stack([torch.cat(mean), torch.cat(std)]) * vae.config.scaling_factor).half().numpy()


def _shares(drawn: np.ndarray) -> np.ndarray:
    """Return the object's share of each latent, float16 [n, h, w] from 0 to 1."""
    n, side = len(drawn), SIZE // 4
    return (drawn[..., 3].reshape(n, side, 4, side, 4).mean(axis=(2, 4), dtype=np.float32) / 255).astype(np.float16)


def as_pipeline(networks: Networks, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
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


def sheet(pipeline: StableDiffusionPipeline, steps: int = 20, guidance: float = 4.0) -> np.ndarray:
    """Return a picture, uint8 [h, w, 3], that shows what the base can do so far.

    It has every class in one setting, and every setting with one class.
    """
    classes, settings = tuple(CLASSES), tuple(SETTINGS)
    prompts = [caption(name, settings[i]) for i, name in enumerate(classes)] + ["a photo of a robot"]
    prompts += [caption(classes[i * 5 % len(classes)], setting) for i, setting in enumerate(settings)]
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    made = pipeline(
        prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
    ).images
    rows = (made.reshape(2, -1, *made.shape[1:]) * 255).round().astype(np.uint8)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the results of the stages")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    for field in fields(Recipe):
        several = {"nargs": "+"} if isinstance(field.default, tuple) else {}
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default, **several)
    arguments = vars(parser.parse_args())
    cycles = tuple(arguments.pop("denoiser_cycles"))
    train_base(arguments.pop("work"), arguments.pop("out"), Recipe(**arguments, denoiser_cycles=cycles))
