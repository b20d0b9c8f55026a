"""The work before the first update: class images are made, images and prompts are encoded."""

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from booth.common.disk_space import Need
from booth.common.file_names import printable
from booth.common.hosts import from_first
from booth.common.progress import progress
from booth.config.concepts import class_folder
from booth.config.trained import trains_text
from booth.data import class_image_files, images
from booth.data.captions import variants
from booth.data.image_folder import find_images
from booth.data.images import Example, Size
from booth.data.inputs import Inputs, as_trained
from booth.data.masks import loss_weights
from booth.data.views import View, covering, views
from booth.diffusion.backend import Backend
from booth.diffusion.sampling import context_of, latent_shape
from booth.diffusion.schedule import noise_schedule
from booth.train import class_images, latent_cache
from booth.train.batches import Batches, TrainingImage
from booth.train.run_folder import RunDir

log = logging.getLogger("booth")


def prepare(config: Any, inputs: Inputs, run: RunDir, backend: Backend, models: Any) -> Batches:
    """Make class images, VAE moments and prompt contexts, all with the untouched base. Return step -> Batch."""
    examples = {"instance": inputs.instances}
    if any(concept.has_prior for concept in inputs.concepts):
        examples["prior"] = _class_examples(inputs, run, backend, models)
        hashes = {example.name: example.sha256 for example in examples["prior"]}
        from_first(run.hosts, lambda: run.check_manifest({"class images": hashes}, may_grow=True))
    for of_kind in examples.values():
        warn_if_small(of_kind, inputs)

    shown = {
        kind: [_views(config, example, inputs.size_of(example)) for example in examples[kind]] for kind in examples
    }
    said = {kind: [_captions(inputs, example) for example in examples[kind]] for kind in examples}
    dropped = any(concept.config.instance.caption_dropout for concept in inputs.concepts)
    prompts = list(dict.fromkeys(text for kind in said for texts in said[kind] for text in texts))
    prompts += [""] if dropped and "" not in prompts else []
    place = {text: index for index, text in enumerate(prompts)}
    images = {
        kind: [
            _training_image(inputs, example, seen, [place[text] for text in texts])
            for example, seen, texts in zip(examples[kind], shown[kind], said[kind], strict=True)
        ]
        for kind in examples
    }
    every_view = [view for kind in shown for seen in shown[kind] for view in seen]
    masked = [view for view in every_view if view.example.mask]
    scale, shift = inputs.pipeline.latent_scaling
    return Batches(
        images=images,
        moments=latent_cache.moments(
            run.cache,
            backend,
            models,
            every_view,
            inputs.pipeline.weights_hash("vae"),
            config.data.encode_batch_size,
            run.hosts,
        ),
        prompts=(
            inputs.tokenizer(prompts)
            if trains_text(config)
            else np.stack(
                [
                    context_of(backend, models, inputs.tokenizer, prompt)
                    for prompt in progress(prompts, desc="encoding captions", disable=len(prompts) < 10, leave=False)
                ]
            )
        ),
        schedule=noise_schedule(as_trained(inputs.pipeline, config).component_config("scheduler")),
        latent_scale=scale,
        latent_shift=shift,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        min_snr_gamma=config.train.min_snr_gamma,
        debiased_estimation=config.train.debiased_estimation,
        loss=config.train.loss,
        huber_delta=config.train.huber_delta,
        huber_schedule=config.train.huber_schedule,
        noise_offset=config.train.noise_offset,
        no_prompt=place.get("", 0),
        masks=dict(
            zip(masked, from_first(run.hosts, lambda: [_loss_weights(inputs, view) for view in masked]), strict=True)
        ),
    )


def needed_space(config: Any, inputs: Inputs, run: RunDir) -> list[Need]:
    """Return the largest space that class images and VAE moments will need, as far as they do not exist yet."""
    settings, images = config.data, len(inputs.instances)
    pixels = max(width * height for width, height in inputs.used_sizes)
    counts = {
        class_folder(inputs.concepts, place, run.class_images): concept.config.prior.count
        for place, concept in enumerate(inputs.concepts) if concept.has_prior
    }  # fmt: skip
    needs = []
    for folder, count in counts.items():
        there = (
            len({*find_images(folder, "prior.images"), *class_image_files.own_images(folder)}) if folder.is_dir() else 0
        )
        needs.append(Need("class images", folder, max(0, count - there) * 3 * pixels))
        images += count
    largest = max(math.prod(latent_shape(inputs.pipeline, *size)) for size in inputs.used_sizes)
    shown = (settings.crop_variants if settings.crop == "random" else 1) * (2 if settings.flip else 1)
    encoded = len(list(run.cache.iterdir())) if run.cache.is_dir() else 0
    missing = max(0, images * shown - encoded)
    return [*needs, Need("encoded images", run.cache, missing * (2 * 4 * largest + 500))]


def _class_examples(inputs: Inputs, run: RunDir, backend: Backend, models: Any) -> list[Example]:
    """Return the class images of all concepts; make the missing ones."""
    recorded = from_first(run.hosts, lambda: run.recorded("class images"))
    examples: list[dict[str, Any]] = []
    for place, concept in enumerate(inputs.concepts):
        if concept.has_prior:
            settings, within = concept.config.prior, f"{place}/" if concept.name else ""
            files = class_images.class_images(
                class_folder(inputs.concepts, place, run.class_images),
                concept.config,
                {size: inputs.sampler(concept.config, "prior", size) for size in inputs.used_sizes},
                inputs.used_sizes,
                backend,
                models,
                inputs.weights,
                {name.removeprefix(within): sha256 for name, sha256 in recorded.items() if name.startswith(within)},
                run.hosts,
            )
            examples += from_first(run.hosts, partial(_read_class_images, files, settings.prompt, place, concept.name))
    return [Example.of_plain(example) for example in examples]


def _read_class_images(files: Sequence[Path], prompt: str, place: int, name: str) -> list[dict[str, Any]]:
    """Return the class images of the concept with this number and name, as plain data."""
    read = images.read_examples(files, prompt, "prior", "prior.images", concept=place, folder=name and str(place))
    return [example.as_plain() for example in read]


def warn_if_small(examples: Sequence[Example], inputs: Inputs) -> None:
    """Log one warning that names the images which will be enlarged."""
    small = [
        f"{printable(example.name)} ({example.size[0]}x{example.size[1]})"
        for example in examples
        if covering(example.size, inputs.size_of(example)) > example.size
    ]
    if small:
        sizes = " or ".join(f"{width}x{height}" for width, height in inputs.used_sizes)
        log.warning("images smaller than %s are enlarged: %s", sizes, ", ".join(small))


def _training_image(inputs: Inputs, example: Example, seen: list[View], prompts: list[int]) -> TrainingImage:
    concept = inputs.concepts[example.concept]
    of_class = example.kind == "prior"
    return TrainingImage(
        seen,
        prompts,
        weight=concept.weight * (concept.config.prior.weight if of_class else 1.0),
        repeats=example.repeats,
        caption_dropout=0.0 if of_class else concept.config.instance.caption_dropout,
    )


def _loss_weights(inputs: Inputs, view: View) -> np.ndarray:
    height, width, _ = latent_shape(inputs.pipeline, *view.size)
    background = inputs.concepts[view.example.concept].config.instance.background_weight
    return loss_weights(view, (width, height), background)


def _captions(inputs: Inputs, example: Example) -> list[str]:
    """Return all captions that an image may be trained with."""
    config = inputs.concepts[example.concept].config
    shuffled = config.instance.shuffled_captions if example.kind == "instance" else 0
    return variants(example.caption, shuffled, config.instance.kept_tags, config.train.seed, example.sha256)


def _views(config: Any, example: Example, size: Size) -> list[View]:
    settings = config.data
    return views(example, size, settings.crop, settings.crop_variants, settings.flip, config.train.seed)
