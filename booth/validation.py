"""Checks of a whole config before any work is done: each value, how they go together, what a backend has."""

import math

from ml_collections import ConfigDict

from booth.config import FIELDS, get, is_remote, typed
from booth.errors import UserError


def validate(config: ConfigDict, backend: str, capabilities: frozenset[str]) -> None:
    """Raises UserError for the first field that breaks its rule, alone, with others, or on this backend."""
    _validate_values(config)
    _validate_inputs(config)
    _validate_updates(config)
    check_capabilities(config, backend, capabilities)


def validate_plan(config: ConfigDict, backend: str, capabilities: frozenset[str]) -> None:
    """The same for a plan, which needs no photos and prompts."""
    _validate_values(config)
    if not config.model.source.strip():
        raise UserError("model.source is empty; name the model to plan for, with --config.model.source=...")
    _validate_updates(config)
    check_capabilities(config, backend, capabilities)


def _validate_values(config: ConfigDict) -> None:
    """Each field alone."""
    for field in FIELDS:
        value = typed(field.name, get(config, field.name))
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{field.name}={value!r} must be a finite number, {field.rule.text}")
        if not field.rule.holds(value):
            raise UserError(f"{field.name}={value!r} must be {field.rule.text}")
        if field.is_path and is_remote(value):
            if field.name != "checkpoint.dir":
                raise UserError(f"{field.name}={value!r} must be a local folder")
            if not value.startswith("gs://"):
                raise UserError(f"{field.name}={value!r} must be a folder, or gs://BUCKET/FOLDER")


def _validate_inputs(config: ConfigDict) -> None:
    """What the user must name."""
    for name, example in (
        ("model.source", "models/sd15"),
        ("instance.images", "photos/"),
        ("instance.prompt", "a photo of sks dog"),
    ):
        if not get(config, name).strip():
            raise UserError(f"{name} is empty; set it in the config or with --config.{name}='{example}'")
    if config.prior.weight > 0 and not config.prior.prompt.strip():
        raise UserError(
            f"prior.weight={config.prior.weight} needs prior.prompt, such as 'a photo of dog';"
            " give it, or set prior.weight=0 to train without prior preservation"
        )
    if config.prior.weight > 0 and config.instance.prompt.strip() == config.prior.prompt.strip():
        raise UserError(
            f"instance.prompt={config.instance.prompt!r} is prior.prompt too;"
            " add an identifier, such as 'a photo of sks dog'"
        )


def check_capabilities(config: ConfigDict, backend: str, capabilities: frozenset[str]) -> None:
    """UserError for a setting that this backend has not, on any machine."""
    if config.mesh.fsdp > 1 and "sharding" not in capabilities:
        raise UserError(f"mesh.fsdp={config.mesh.fsdp} must be 1: {backend}booth trains on one device")
    if is_remote(config.checkpoint.dir) and "bucket checkpoints" not in capabilities:
        raise UserError(
            f"checkpoint.dir={config.checkpoint.dir!r} must be a local folder: {backend}booth writes no buckets"
        )
    if config.train.precision == "fp16" and "fp16" not in capabilities:
        raise UserError(f"train.precision='fp16' must be 'bf16' or 'fp32': {backend}booth does not compute in float16")
    if config.train.optimizer == "adamw8bit" and "adamw8bit" not in capabilities:
        raise UserError(f"train.optimizer='adamw8bit' must be 'adamw': {backend}booth has no 8-bit optimizer yet")
    if config.train.gradient_checkpointing == "attention" and "attention kernels" not in capabilities:
        raise UserError(
            f"train.gradient_checkpointing='attention' must be 'none' or 'block': {backend}booth's attention keeps no"
            " weights anyway"
        )
    if config.train.attention != "auto" and "attention kernels" not in capabilities:
        raise UserError(f"train.attention={config.train.attention!r} must be 'auto': PyTorch chooses its own")


def _validate_updates(config: ConfigDict) -> None:
    """How the fields of an update go together."""
    train = config.train
    if train.batch_size % train.accumulation:
        raise UserError(
            f"train.accumulation={train.accumulation} must divide train.batch_size={train.batch_size}, which counts the"
            " instance images of the whole update: what older scripts call batch 1 with accumulation 4 is batch_size=4"
            " with accumulation=4 here"
        )
    if train.lr_warmup_steps >= train.steps:
        raise UserError(f"train.lr_warmup_steps={train.lr_warmup_steps} must be less than train.steps={train.steps}")
    if train.lr_schedule == "polynomial" and train.lr_end >= train.learning_rate:
        raise UserError(f"train.lr_end={train.lr_end} must be less than train.learning_rate={train.learning_rate}")
    if train.text_encoder_learning_rate and not train.text_encoder:
        raise UserError(
            f"train.text_encoder_learning_rate={train.text_encoder_learning_rate} needs train.text_encoder=true;"
            " leave it 0 where the text encoder does not train"
        )
