"""What happens before the first update: inputs are checked, class images made, images and prompts encoded."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from booth import cache, data, hub, prior
from booth.backend import Backend
from booth.batches import Batches
from booth.captions import variants
from booth.config import get, trains_text
from booth.data import Example
from booth.errors import UserError
from booth.image_dataset import open_photos
from booth.pipeline_dir import PipelineDir, open_pipeline
from booth.progress import progress
from booth.prompts import Tokenizer
from booth.rundir import RunDir
from booth.sampling import Sampler, context_of, latent_shape, sampling_table
from booth.schedule import noise_schedule
from booth.solvers import is_guided
from booth.space import Need
from booth.tokens import initial_rows, new_tokens


@dataclass(frozen=True)
class Inputs:
    """What the user gave, read and found usable."""

    pipeline: PipelineDir
    tokenizer: Tokenizer
    instances: list[Example]
    captioned: bool = False  # whether photos have captions of their own
    dataset: Mapping[str, str] = field(default_factory=dict)  # where photos came from, if from the hub

    def fingerprint(self) -> dict[str, dict[str, str]]:
        """sha256 of every photo, and of the model's weights and configs: what a resumed run must find unchanged."""
        captions = {example.path.name: example.caption for example in self.instances}
        return ({"captions": captions} if self.captioned else {}) | {
            "instance images": {example.path.name: example.sha256 for example in self.instances},
            "model weights": {name: self.pipeline.weights_hash(name) for name in self.pipeline.family.networks},
            "model configs": self.pipeline.config_hashes(),
        }

    def origins(self, config: Any) -> dict[hub.Kind, dict[str, str]]:
        """Where model and photos came from, if from the hub; {} for a local folder."""
        model = self.pipeline.model
        found = {hub.MODEL: {"id": model.id, "commit": model.commit} if model else {}, hub.DATASET: self.dataset}
        return {
            kind: {"source": get(config, kind.source), "revision": get(config, kind.revision), **origin}
            if origin else {} for kind, origin in found.items()
        }  # fmt: skip

    def sampler(self, config: Any, section: str) -> Sampler:
        """The sampler that `prior` or `samples` of the config describes, at the training resolution."""
        settings, side = config[section], config.data.resolution
        return Sampler(
            self.pipeline,
            self.tokenizer,
            (side, side),
            settings.solver,
            settings.inference_steps,
            settings.guidance,
            preview_batch_size(config) if section == "samples" else settings.batch_size,
        )


def preview_batch_size(config: Any) -> int:
    """Images of a preview that are denoised together: the UNet gets no more rows than in a training pass, if that is
    possible (one guided image is two rows)."""
    kinds = 2 if config.prior.weight > 0 else 1
    rows = kinds * config.train.batch_size // config.train.accumulation
    return max(1, rows // 2 if is_guided(config.samples.guidance) else rows)


def check_inputs(config: Any, revision: str = "", dataset_revision: str = "") -> Inputs:
    """Looks at everything that can be refused, before anything is written and before a device starts. UserError.

    `revision` and `dataset_revision` are the commits that a run keeps to, if it has them already.
    """
    pipeline = open_pipeline(config.model.source, config.model.variant, revision or config.model.revision)
    noise_schedule(pipeline.component_config("scheduler"))
    with _naming("data.resolution"):
        latent_shape(pipeline, config.data.resolution, config.data.resolution)
    settings = config.instance
    revision = dataset_revision or settings.revision
    photos = open_photos(settings.images, settings.image_column, settings.captions, revision)
    instances = data.instance_examples(str(photos.folder), settings.prompt, settings.captions, settings.caption_column)
    data.warn_if_small(instances, config.data.resolution)
    if config.prior.weight > 0:
        _check_sampling(config, "prior", pipeline)
        if config.prior.images:
            _check_apart(config.instance.images, config.prior.images)
            data.log_passed_over(config.prior.images, "prior.images")
            own = prior.own_images(Path(config.prior.images))
            data.read_examples(own, config.prior.prompt, "prior", "prior.images")
    if config.samples.every_steps or config.samples.before_after:
        _check_sampling(config, "samples", pipeline)
    tokenizer = load_tokenizer(pipeline, new_tokens(config))
    _check_tokens(config, pipeline, instances)
    return Inputs(pipeline, tokenizer, instances, settings.captions != "none", photos.origin)


def _check_sampling(config: Any, section: str, pipeline: PipelineDir) -> None:
    settings = config[section]
    with _naming(f"{section}.solver"):
        sampling_table(pipeline, settings.solver, 1)
    with _naming(f"{section}.inference_steps"):
        sampling_table(pipeline, settings.solver, settings.inference_steps)


def _check_apart(photos: str, class_images: str) -> None:
    """UserError if class images would lie among the photos; subfolders are never looked into, so they may be nested."""
    if Path(photos).resolve() == Path(class_images).resolve():
        raise UserError(
            f"prior.images={class_images!r} is instance.images too; give class images a folder of their own"
        )


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Says which field a UserError from the depths is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{field}: {error}") from error


def _check_tokens(config: Any, pipeline: PipelineDir, instances: Sequence[Example]) -> None:
    """UserError for a new token that no prompt has, or whose initializer the model does not know as one token."""
    if not pipeline.to_download:
        initial_rows(config, pipeline)
    for token in new_tokens(config):
        if not any(token in example.caption for example in instances):
            raise UserError(
                f"tokens.add: {token} is in no prompt or caption of the photos; write it into instance.prompt"
            )


def load_tokenizer(pipeline: PipelineDir, added: Sequence[str] = ()) -> Tokenizer:
    """The pipeline's tokenizer with new tokens, padding to the text encoder's window (77 tokens)."""
    encoder = pipeline.component_config("text_encoder")
    return Tokenizer(
        pipeline.tokenizer_path, encoder["max_position_embeddings"], encoder.get("vocab_size", 49408), added
    )


def prepare(config: Any, inputs: Inputs, run: RunDir, backend: Backend, models: Any) -> Batches:
    """Class images, VAE moments and prompt contexts, all from the untouched base: step -> Batch is ready then."""
    examples = {"instance": inputs.instances}
    weight = {"instance": 1.0}
    if config.prior.weight > 0:
        files = prior.class_images(
            Path(config.prior.images) if config.prior.images else run.class_images,
            config,
            inputs.sampler(config, "prior"),
            backend,
            models,
            inputs.fingerprint()["model weights"],
        )
        examples["prior"] = data.read_examples(files, config.prior.prompt, "prior", "prior.images")
        hashes = {example.path.name: example.sha256 for example in examples["prior"]}
        run.check_manifest({"class images": hashes}, may_grow=True)
        data.warn_if_small(examples["prior"], config.data.resolution)
        weight["prior"] = config.prior.weight

    shown = {kind: [_views(config, example) for example in images] for kind, images in examples.items()}
    every_view = [view for images in shown.values() for views in images for view in views]
    scale, shift = inputs.pipeline.latent_scaling
    captions = {kind: [_captions(config, example) for example in images] for kind, images in examples.items()}
    dropout = config.instance.caption_dropout
    used = [text for images in captions.values() for choices in images for text in choices]
    prompts = list(dict.fromkeys([*used, *([""] if dropout else [])]))
    place = {text: index for index, text in enumerate(prompts)}
    return Batches(
        views=shown,
        moments=cache.moments(
            run.cache, backend, models, every_view, inputs.pipeline.weights_hash("vae"), config.data.encode_batch_size
        ),
        weight=weight,
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
        prompt_index={kind: [[place[text] for text in choices] for choices in captions[kind]] for kind in captions},
        schedule=noise_schedule(inputs.pipeline.component_config("scheduler")),
        latent_scale=scale,
        latent_shift=shift,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        min_snr_gamma=config.train.min_snr_gamma,
        noise_offset=config.train.noise_offset,
        caption_dropout=dropout,
        no_prompt=place.get("", 0),
    )


def needed_space(config: Any, inputs: Inputs, run: RunDir) -> list[Need]:
    """What class images and VAE moments will take, as far as they are not there yet; at most."""
    folder = Path(config.prior.images) if config.prior.images else run.class_images
    count = config.prior.count if config.prior.weight > 0 else 0
    there = len(data.find_images(folder, "prior.images")) if count and folder.is_dir() else 0
    missing = max(0, count - there)
    settings, shape = config.data, latent_shape(inputs.pipeline, config.data.resolution, config.data.resolution)
    shown = (settings.crop_variants if settings.crop == "random" else 1) * (2 if settings.flip else 1)
    encoded = len(list(run.cache.iterdir())) if run.cache.is_dir() else 0
    views = max(0, (len(inputs.instances) + count) * shown - encoded)
    return [
        Need("class images", folder, missing * 3 * settings.resolution**2),
        Need("encoded images", run.cache, views * (2 * 4 * math.prod(shape) + 500)),
    ]


def _captions(config: Any, example: Example) -> list[str]:
    """All that an image may be trained with."""
    settings = config.instance
    shuffled = settings.shuffled_captions if example.kind == "instance" else 0
    return variants(example.caption, shuffled, settings.kept_tags, config.train.seed, example.sha256)


def _views(config: Any, example: Example) -> list[data.View]:
    settings = config.data
    return data.views(
        example, settings.resolution, settings.crop, settings.crop_variants, settings.flip, config.train.seed
    )
