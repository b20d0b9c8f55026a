"""Check a whole config before any work is done: each value, combinations of values, and what a backend has."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ml_collections import ConfigDict

from booth.common.errors import UserError, naming
from booth.config.concepts import concepts_of
from booth.config.fields import AUTO, FIELDS, Field, packages
from booth.config.sources import DATASET, MODEL
from booth.config.trained import trained_networks, trains_text
from booth.config.values import flat, flatten, get, is_remote, typed, without_effect


def validate_settings(config: ConfigDict, backend: str) -> None:
    """Raise UserError for the first field that breaks a rule: its own, one with other fields, or one of this backend.

    `booth.data.input_rules.validate` also checks the fields that have no default and must be given.
    """
    _validate_values(config)
    for concept in concepts_of(config):
        with naming(concept.name):
            _validate_values(concept.config)
    validate_updates(config)
    check_backend(config, backend)
    _validate_effects(config)


def validate_plan(config: ConfigDict, backend: str) -> None:
    """Raise UserError for the first field that breaks a rule of a plan, which needs no photos and prompts."""
    _validate_values(config)
    if not config.model.source.strip():
        raise UserError("model.source is empty; name the model to plan for, with --config.model.source=...")
    validate_updates(config)
    check_backend(config, backend)
    _validate_effects(config)


def _validate_values(config: ConfigDict) -> None:
    """Raise UserError for the first field whose value breaks its own rule."""
    for field in FIELDS:
        value = typed(field.name, get(config, field.name))
        if field.auto and value == AUTO:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{field.name}={value!r} must be a finite number, {field.said_rule}")
        if not field.rule.holds(value):
            instead = f"; {field.instead}" if field.instead and value == 0 else ""
            raise UserError(f"{field.name}={value!r} must be {field.said_rule}{instead}")
        if field.is_path and is_remote(value):
            if not field.bucket_backends:
                ids = field.name in (MODEL.source, DATASET.source)
                raise UserError(f"{field.name}={value!r} must be a local folder{', or a hub id owner/name' * ids}")
            if not value.startswith("gs://"):
                raise UserError(f"{field.name}={value!r} must be a folder, or gs://BUCKET/FOLDER")


def _validate_effects(config: ConfigDict) -> None:
    for idle in idle_fields(config):
        if any(need.refused for need in idle.field.needs):
            raise UserError(f"{idle.setting} has no effect: {idle.why}; set that too, or leave {idle.field.name} out")


@dataclass(frozen=True)
class Idle:
    """A field that is set and has no effect."""

    field: Field
    setting: str  # name and value, after the name of the concept if it has the field
    why: str


def idle_fields(config: ConfigDict) -> Iterator[Idle]:
    """Yield the idle fields: those of a concept that it sets itself, and those of the run that no concept uses."""
    concepts = concepts_of(config)
    idle = [without_effect(flatten(concept.config)) for concept in concepts]
    for place, concept in enumerate(concepts):
        own = flat(config.concepts[place]) if concept.name else {}
        for field in idle[place]:
            if field.name in own:
                yield _idle(f"{concept.name}: ", concept.config, field)
            elif place == 0 and all(field in others for others in idle):
                yield _idle("", config, field)


def _idle(where: str, config: ConfigDict, field: Field) -> Idle:
    wanted = (f"{need.name} must be {need.rule.text}, and is {get(config, need.name)!r}" for need in field.needs)
    return Idle(field, f"{where}{field.name}={get(config, field.name)!r}", ", or ".join(wanted))


def check_backend(config: ConfigDict, backend: str) -> None:
    """Raise UserError for a setting that this backend does not have on any machine."""
    for field in FIELDS:
        value = get(config, field.name)
        if (having := field.backends_with(value)) and backend not in having:
            raise UserError(
                f"{field.name}={value!r} must be {field.rule_of(backend).text} with {backend}booth: only"
                f" {packages(having)} has it"
            )
        rule = field.sharded.get(backend)
        if config.mesh.fsdp > 1 and rule and not rule.holds(value):
            raise UserError(
                f"{field.name}={value!r} must be {rule.text} with mesh.fsdp={config.mesh.fsdp}: it does not go with"
                " weights that are split over processes"
            )
        if field.bucket_backends and backend not in field.bucket_backends and is_remote(value):
            raise UserError(
                f"{field.name}={value!r} must be a local folder with {backend}booth: only"
                f" {packages(field.bucket_backends)} writes to buckets"
            )


def validate_updates(config: ConfigDict) -> None:
    """Raise UserError if the fields of an update do not go together."""
    train = config.train
    if train.batch_size % train.accumulation:
        raise UserError(
            f"train.accumulation={train.accumulation} must divide train.batch_size={train.batch_size}, which counts the"
            " instance images of the whole update: what older scripts call batch 1 with accumulation 4 is batch_size=4"
            " with accumulation=4 here"
        )
    if train.steps != AUTO and train.lr_warmup_steps >= train.steps:
        raise UserError(f"train.lr_warmup_steps={train.lr_warmup_steps} must be less than train.steps={train.steps}")
    if train.lr_schedule == "polynomial" and train.learning_rate != AUTO and train.learning_rate <= train.lr_end:
        raise UserError(f"train.lr_end={train.lr_end} must be less than train.learning_rate={train.learning_rate}")
    if train.debiased_estimation and train.min_snr_gamma:
        raise UserError(
            f"train.debiased_estimation=true does not go with train.min_snr_gamma={train.min_snr_gamma}: both set the"
            " loss weights of timesteps; leave one of them out"
        )
    _validate_memory(config)
    _validate_pull(config)
    _validate_prodigy(config)
    if not (train.unet or trains_text(config)):
        raise UserError("train.unet=false leaves nothing to train; set train.text_encoder=true, or give tokens.add")
    if config.adapter.kind == "lora" and not (train.unet or train.text_encoder):
        raise UserError("adapter.kind='lora' needs a network to train: train.unet=true or train.text_encoder=true")


def _validate_pull(config: ConfigDict) -> None:
    """Raise UserError if train.pull does not go with the other fields."""
    train = config.train
    if train.pull == 0:
        return
    if config.adapter.kind == "lora":
        raise UserError(
            f"train.pull={train.pull} must be 0 with adapter.kind='lora': adapters begin at 0, so"
            " train.weight_decay already pulls towards the base"
        )
    if not trained_networks(config):
        raise UserError(f"train.pull={train.pull} must be 0 where only new tokens train: the base has none of them")
    if config.memory.fused_backward or config.memory.weights == "bf16":
        raise UserError(
            f"train.pull={train.pull} must be 0 with memory.fused_backward=true or memory.weights='bf16': each tensor"
            " would have to be pulled inside its own update; leave one of them out"
        )
    rates = [rate for rate in (train.learning_rate, train.text_encoder_learning_rate) if rate != AUTO]
    if rates and (rate := max(rates)) * train.pull >= 1:
        raise UserError(
            f"train.pull={train.pull} must be less than {1 / rate:g}, 1 / the learning rate: an update would go"
            " back to the base"
        )


def _validate_prodigy(config: ConfigDict) -> None:
    """Raise UserError for fields that do not go with Prodigy, which finds one learning rate from all tensors."""
    train, memory = config.train, config.memory
    if train.optimizer != "prodigy":
        return
    if train.learning_rate != AUTO and train.learning_rate < 0.1:
        raise UserError(
            f"train.learning_rate={train.learning_rate} must be at least 0.1, best 1, with train.optimizer='prodigy':"
            " it is a factor of the rate that Prodigy finds"
        )
    if config.tokens.add or train.text_encoder_learning_rate not in (AUTO, train.learning_rate):
        raise UserError(
            "train.optimizer='prodigy' finds one learning rate for all, so it goes neither with tokens.add nor with a"
            " train.text_encoder_learning_rate; use 'adamw', or leave them out"
        )
    if memory.fused_backward or memory.weights == "bf16" or memory.offload_optimizer == "always":
        raise UserError(
            "train.optimizer='prodigy' does not go with memory.fused_backward=true, memory.weights='bf16' or"
            " memory.offload_optimizer='always': they update one tensor at a time, and it needs all; leave them out"
        )
    if train.pull:
        raise UserError(
            f"train.pull={train.pull} must be 0 with train.optimizer='prodigy': its strength depends on the"
            " learning rate, which is not known before training"
        )


def _validate_memory(config: ConfigDict) -> None:
    """Raise UserError if memory techniques exclude each other."""
    train, memory = config.train, config.memory
    if memory.fused_backward and train.accumulation > 1:
        raise UserError(
            f"memory.fused_backward=true needs train.accumulation=1, not {train.accumulation}: a gradient is gone"
            " before the next piece could add to it; lower train.batch_size, or leave one of them out"
        )
    if memory.fused_backward and train.precision == "fp16":
        raise UserError(
            "memory.fused_backward=true does not go with train.precision='fp16': whether an update must be skipped for"
            " overflow is known only when all gradients are there; use bf16 or fp32"
        )
    if memory.fused_backward and train.compile != "none":
        raise UserError(
            f"memory.fused_backward=true does not go with train.compile={train.compile!r}: a compiled backward pass"
            " gives all gradients at once, so nothing would be saved; leave one of them out"
        )
    if memory.weights == "bf16" and train.precision != "bf16":
        raise UserError(
            f"memory.weights='bf16' needs train.precision='bf16', not {train.precision!r}: weights with 8"
            " significant bits gain nothing from more exact products"
        )
    if train.channels_last and (
        memory.weights == "bf16"
        or memory.offload_optimizer == "always"
        or train.optimizer not in ("adamw", "adafactor")
    ):
        raise UserError(
            "train.channels_last=true does not go with memory.weights='bf16', memory.offload_optimizer='always' or"
            f" train.optimizer={train.optimizer!r}: they use the order of values in memory; leave one of them out"
        )
    if train.compile in ("reduce-overhead", "max-autotune") and train.accumulation > 1:
        raise UserError(
            f"train.compile={train.compile!r} needs train.accumulation=1, not {train.accumulation}: its CUDA graphs"
            " overwrite the gradients that the next piece would add to; use 'default'"
        )
    if config.adapter.kind == "lora" and memory.weights == "bf16":
        raise UserError(
            "memory.weights='bf16' does not go with adapter.kind='lora': adapters train in float32, and what does not"
            " train is kept in train.precision anyway; leave memory.weights 'fp32'"
        )
