"""The user's inputs, checked before anything is written and before a device starts."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from booth.common.errors import UserError, naming
from booth.common.file_names import listed
from booth.config.concepts import Concept, concepts_of, has_prior
from booth.config.sources import DATASET, MODEL, Kind
from booth.config.values import default_of, get
from booth.data import class_image_files, images
from booth.data.image_dataset import Photos, cache_folder, open_photos
from booth.data.image_file import load_image
from booth.data.image_folder import log_passed_over
from booth.data.images import Example, Size
from booth.data.kohya_folders import Subfolder, may_be_an_order, repeated_folders
from booth.data.masks import mask_hash, with_masks
from booth.data.views import AUTO, bucket_sizes, nearest
from booth.diffusion.sampling import Sampler, latent_shape, sampling_table, side_multiple
from booth.diffusion.schedule import noise_schedule, zero_terminal_snr
from booth.diffusion.solvers import is_guided
from booth.models.new_tokens import initial_rows, new_tokens
from booth.models.open import open_pipeline
from booth.models.pipeline import PipelineDir
from booth.models.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger("booth")


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run, checked. `sizes` are the sizes that images may be resized and cropped to."""

    pipeline: PipelineDir
    tokenizer: Tokenizer
    instances: list[Example]
    concepts: tuple[Concept, ...]
    sizes: tuple[Size, ...]
    dataset: Mapping[str, str] = field(default_factory=dict)  # where the photos came from, if from the hub

    @cached_property
    def used_sizes(self) -> Counter[Size]:
        """The sizes of the instance images after resizing, and how many images of each size an epoch shows."""
        used: Counter[Size] = Counter()
        for example in self.instances:
            used[nearest(example.size, self.sizes)] += example.repeats
        return used

    def size_of(self, example: Example) -> Size:
        """Return the size of an image after resizing; a class image gets a size that instance images have too."""
        return nearest(example.size, self.sizes if example.kind == "instance" else tuple(self.used_sizes))

    @property
    def weights(self) -> dict[str, str]:
        """The sha256 of each network's weights, which the pipeline computes once."""
        return {name: self.pipeline.weights_hash(name) for name in self.pipeline.family.networks}

    def fingerprint(self) -> dict[str, dict[str, str]]:
        """Return the sha256 of every photo, and of the model's weights and configs: a resumed run must find them
        unchanged."""
        captioned = any(concept.config.instance.captions != "none" for concept in self.concepts)
        captions = {example.name: example.caption for example in self.instances}
        masks = {example.name: mask_hash(example) for example in self.instances if example.mask}
        return (
            ({"captions": captions} if captioned else {})
            | ({"masks": masks} if masks else {})
            | {
                "instance images": {example.name: example.sha256 for example in self.instances},
                "model weights": self.weights,
                "model configs": self.pipeline.config_hashes(),
            }
        )

    def origins(self, config: Any) -> dict[Kind, dict[str, str]]:
        """Return where on the hub the model and the photos came from; {} for a local folder."""
        model = self.pipeline.model
        found = {MODEL: {"id": model.id, "commit": model.commit} if model else {}, DATASET: self.dataset}
        return {
            kind: {"source": get(config, kind.source), "revision": get(config, kind.revision), **origin}
            if origin else {} for kind, origin in found.items()
        }  # fmt: skip

    def sampler(self, config: Any, section: str, size: Size | None = None, *, tuned: bool = False) -> Sampler:
        """Return the sampler that the section `prior` or `samples` describes, by default at the training resolution.

        `tuned` asks for the sampler of the trained model, whose noise schedule may differ from the base's.
        """
        settings, side = config[section], config.data.resolution
        return Sampler(
            as_trained(self.pipeline, config) if tuned else self.pipeline,
            self.tokenizer,
            size or (side, side),
            settings.solver,
            settings.inference_steps,
            settings.guidance,
            preview_batch_size(config) if section == "samples" else settings.batch_size,
        )


def as_trained(pipeline: PipelineDir, config: Any) -> PipelineDir:
    """Return the pipeline with the noise schedule that the run trains with. Raise UserError as `zero_terminal_snr`."""
    if not config.train.zero_terminal_snr:
        return pipeline
    return pipeline.with_scheduler(zero_terminal_snr(pipeline.component_config("scheduler")))


def largest_size(config: Any, pipeline: PipelineDir) -> Size:
    """Return the size with the most pixels that a training image may get: memory must be enough for it."""
    sizes = bucket_sizes(config.data.buckets, config.data.resolution, side_multiple(pipeline))
    return max(sizes, key=lambda size: size[0] * size[1])


def largest_prompts(config: Any) -> int:
    """Return the largest number of prompts in an update: as many as rows if each photo has its own prompt."""
    kinds, concepts = 2 if has_prior(config) else 1, concepts_of(config)
    own = len(concepts) > 1 or any(concept.config.instance.captions != "none" for concept in concepts)
    return kinds * config.train.batch_size if own else kinds


def preview_batch_size(config: Any) -> int:
    """Return how many images of a preview are denoised together: the UNet gets no more rows than in a training pass, if
    possible (one guided image is two rows)."""
    kinds = 2 if has_prior(config) else 1
    rows = kinds * config.train.batch_size // config.train.accumulation
    return max(1, rows // 2 if is_guided(config.samples.guidance) else rows)


def check_inputs(config: Any, revision: str = "", dataset_revision: str = "") -> Inputs:
    """Return the inputs of a run, checked before files are written and devices start. Raise UserError for anything that
    can be refused by then.

    `revision` and `dataset_revision` are the commits that a resumed run must keep. If there are several concepts, each
    has its own dataset, at its `instance.revision`.
    """
    model = config.model
    pipeline = open_pipeline(model.source, model.variant, revision or model.revision, config=model.config)
    trained = as_trained(pipeline, config)
    noise_schedule(trained.component_config("scheduler"))
    with naming("data.resolution"):
        latent_shape(pipeline, config.data.resolution, config.data.resolution)
    sizes = bucket_sizes(config.data.buckets, config.data.resolution, side_multiple(pipeline))
    with naming("data.buckets"):
        for size in sizes:
            latent_shape(pipeline, *size)
    concepts = concepts_of(config)
    photos = [_open_photos(concept, "" if concept.name else dataset_revision) for concept in concepts]
    instances = [
        example
        for place, (concept, opened) in enumerate(zip(concepts, photos, strict=True))
        for example in _instances(concept, place, str(opened.folder))
    ]
    for concept in concepts:
        if concept.has_prior:
            with naming(concept.name):
                _check_prior(concept.config, pipeline, [other.config.instance.images for other in concepts])
    if config.samples.every_steps or config.samples.before_after:
        _check_sampling(config, "samples", trained)
    if config.samples.before_after:
        _check_sampling(config, "samples", pipeline)
    tokenizer = load_tokenizer(pipeline, new_tokens(config))
    _check_tokens(config, pipeline, instances)
    origin = photos[0].origin if not config.concepts else {}
    inputs = Inputs(pipeline, tokenizer, instances, concepts, sizes, origin)
    if empty := [size for size in sizes if AUTO not in config.data.buckets and size not in inputs.used_sizes]:
        log.warning(
            "data.buckets: no photo is nearest to %s, so they are not used", ", ".join(f"{w}x{h}" for w, h in empty)
        )
    return inputs


def _open_photos(concept: Concept, revision: str) -> Photos:
    settings = concept.config.instance
    with naming(concept.name):
        photos = open_photos(settings.images, settings.image_column, settings.captions, revision or settings.revision)
        if photos.folder.parent != cache_folder() and settings.image_column != default_of("instance.image_column"):
            raise UserError(
                f"instance.image_column={settings.image_column!r} is for datasets, and instance.images="
                f"{settings.images!r} is a folder of photos; leave it out"
            )
        return photos


def _instances(concept: Concept, place: int, root: str) -> list[Example]:
    """Return a concept's photos: those in the folder `root`, or in the folders with repeats inside it."""
    settings, examples = concept.config.instance, []
    of_concept = concept.name and str(place)
    with naming(concept.name):
        folders = repeated_folders(root)
        if folders:
            log_passed_over(root, "instance.images", [folder.path for folder in folders])
        if may_be_an_order(folders):
            log.warning(
                "instance.images: the numbers of %s are taken for repeats; if they are an order, put all photos into"
                " one folder", listed([folder.name for folder in folders]),
            )  # fmt: skip
        for folder in folders or [Subfolder(Path(root), 1, "")]:
            if folders:
                log.info("instance.images: each photo in %r is shown %d times an epoch", folder.name, folder.repeats)
            found = images.instance_examples(
                str(folder.path),
                settings.prompt or (folder.words if settings.captions == "none" else ""),
                settings.captions,
                settings.caption_column,
                masks=settings.masks == "files",
            )
            examples += [
                replace(
                    example, repeats=settings.repeats * folder.repeats, concept=place,
                    folder="/".join(filter(None, (of_concept, folder.name if folders else ""))),
                )
                for example in with_masks(found, settings.masks)
            ]  # fmt: skip
    return examples


def _check_prior(config: Any, pipeline: PipelineDir, photos: Sequence[str]) -> None:
    _check_sampling(config, "prior", pipeline)
    if folder := config.prior.images:
        _check_apart(photos, folder)
        log_passed_over(folder, "prior.images", [sub.path for sub in class_image_files.class_folders(Path(folder))])
        images.read_examples(class_image_files.own_images(Path(folder)), config.prior.prompt, "prior", "prior.images")


def check_class_images(inputs: Inputs) -> None:
    """Raise UserError if class images would be too few for all sizes, or if two concepts with different class images
    share a folder."""
    folders: dict[str, Concept] = {}
    for concept in inputs.concepts:
        if not concept.has_prior:
            continue
        settings = concept.config.prior
        own = class_image_files.own_images(Path(settings.images)) if settings.images else []
        with naming(concept.name):
            class_image_files.to_make(settings.count, inputs.used_sizes, [load_image(path).size for path in own])
        other = folders.setdefault(settings.images, concept) if settings.images else concept
        if any(get(other.config, name) != get(concept.config, name) for name in class_image_files.RECIPE):
            raise UserError(
                f"{concept.name}: prior.images={settings.images!r} is also prior.images of {other.name}, whose class"
                " images differ in prompt, seed or solver; give each a folder of its own, or none"
            )


def _check_sampling(config: Any, section: str, pipeline: PipelineDir) -> None:
    settings = config[section]
    with naming(f"{section}.solver"):
        sampling_table(pipeline, settings.solver, 1)
    with naming(f"{section}.inference_steps"):
        sampling_table(pipeline, settings.solver, settings.inference_steps)


def _check_apart(photos: Sequence[str], of_class: str) -> None:
    """Raise UserError if class images would be in a folder whose photos are read. Other subfolders are not read, so
    these folders may be nested."""
    class_paths = _looked_into(of_class, class_image_files.class_folders(Path(of_class)))
    of_photos = [path for folder in photos for path in _looked_into(folder, repeated_folders(folder))]
    if shared := [path for path in class_paths if path in of_photos]:
        which = listed([path.name for path in shared])
        raise UserError(
            f"prior.images={of_class!r} is also instance.images ({which}); give class images a folder of their own"
        )


def _looked_into(folder: str, subfolders: Sequence[Subfolder]) -> list[Path]:
    return [path.resolve() for path in [sub.path for sub in subfolders] or [Path(folder)]]


def _check_tokens(config: Any, pipeline: PipelineDir, instances: Sequence[Example]) -> None:
    """Raise UserError for a new token that no prompt has, or whose initializer is not one token of the model."""
    if not pipeline.to_download:
        initial_rows(config, pipeline)
    for token in new_tokens(config):
        if not any(token in example.caption for example in instances):
            raise UserError(
                f"tokens.add: {token} is in no prompt or caption of the photos; write it into instance.prompt"
            )
