"""Settings: one place for defaults, and every value that cannot work refused in one line."""

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from ml_collections import ConfigDict

from booth.commands import fields
from booth.common.errors import UserError
from booth.config import data_file
from booth.config import values as settings
from booth.config.changes import changes, of_record
from booth.config.fields import memory_size
from booth.config.loading import load_config
from booth.config.texts import parse_text
from booth.config.validation import idle_fields, validate_plan
from booth.config.values import default_config, flatten, resolved, set_field
from booth.data.input_rules import validate

FIELDS = """
model.source model.revision model.variant
instance.images instance.prompt
prior.weight prior.prompt prior.images prior.count
train.steps train.batch_size train.accumulation train.learning_rate train.lr_schedule train.lr_warmup_steps
train.precision train.unet train.text_encoder train.optimizer train.adam_b1 train.adam_b2 train.adam_eps
train.weight_decay train.max_grad_norm train.min_snr_gamma train.noise_offset train.seed
data.resolution data.crop data.crop_variants data.flip
checkpoint.every_steps checkpoint.keep checkpoint.dir
samples.every_steps samples.prompts
""".split()  # noqa: SIM905

CONFIGS = Path(__file__).parents[2] / "configs"
GET_CONFIG = "from booth.config.values import default_config\n\ndef get_config():\n    config = default_config()\n"


@pytest.fixture
def valid():
    config = default_config()
    config.model.source, config.instance.images = "models/sd15", "photos"
    config.instance.prompt, config.prior.prompt = "a photo of sks dog", "a photo of dog"
    return config


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def check(config, backend="jax"):
    validate(config, backend)


def refusal(call, *arguments):
    """The message of the UserError, which must be one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500, message
    return message


@pytest.mark.parametrize("name", FIELDS)
def test_field_exists(name):
    assert name in flatten(default_config())
    assert name in fields.table()


def test_defaults_are_valid_once_the_required_fields_are_set(valid):
    check(valid)


@pytest.mark.parametrize("name", ["model.source", "instance.images", "instance.prompt"])
def test_required_fields(valid, name):
    for empty in ("", " \n"):
        set_field(valid, name, empty)
        assert refusal(check, valid).startswith(f"{name} is empty; set it")


def test_a_prior_needs_its_prompt(valid):
    valid.prior.prompt = ""
    assert "prior.weight=1.0 needs prior.prompt" in refusal(check, valid)
    valid.prior.weight = 0.0
    check(valid)


@pytest.mark.parametrize("name", [field.name for field in settings.FIELDS if field.is_path])
def test_remote_folders_are_refused(valid, name):
    set_field(valid, name, "gs://bucket/folder")
    said = refusal(validate, resolved(valid), "torch")
    assert said.startswith(f"{name}='gs://bucket/folder' must be a local folder")


@pytest.mark.parametrize("prompt", ["a photo of dog", " a photo of dog "])
def test_an_identifier_tells_the_subject_from_its_class(valid, prompt):
    valid.instance.prompt = prompt
    assert "is the same as prior.prompt; add an identifier" in refusal(check, valid)
    valid.prior.weight = 0.0
    check(valid)


def test_locked():
    config = default_config()
    with pytest.raises(AttributeError):
        config.train.step = 3
    with pytest.raises(KeyError):
        config["trian"] = ConfigDict()


# Each value breaks its field's rule; NaN and infinity break every rule of a number.
OUT_OF_RANGE = {
    "prior.weight": -0.1, "prior.count": 0, "prior.solver": "heun", "prior.inference_steps": 0,
    "prior.guidance": -1.0, "prior.seed": -1, "prior.batch_size": 0, "train.steps": 0,
    "train.batch_size": 0, "train.learning_rate": 0.0, "train.precision": "fp8",
    "train.adam_b1": 1.0, "train.adam_b2": -0.1, "train.adam_eps": 0.0,
    "train.weight_decay": -1e-9, "train.max_grad_norm": -1.0, "train.seed": 2**63, "data.resolution": 7,
    "train.accumulation": 0, "train.lr_schedule": "warm",
    "train.lr_warmup_steps": -1, "train.lr_power": 0.0, "train.lr_end": -1e-9, "train.text_encoder_learning_rate": 0.0,
    "train.lr_cycles": 0, "train.loss": "l1", "train.huber_delta": 0.0, "train.huber_schedule": "linear",
    "train.optimizer": "sgd", "train.min_snr_gamma": -1.0, "train.noise_offset": -0.1,
    "data.crop": "left", "data.crop_variants": 0, "data.encode_batch_size": 0, "checkpoint.every_steps": -1,
    "checkpoint.keep": 0, "samples.every_steps": -1, "samples.images_per_prompt": 0,
    "samples.solver": "DDIM", "samples.inference_steps": 0, "samples.guidance": -0.5,
    "train.gradient_checkpointing": "all", "train.attention": "flash",
    "export.precision": "int8", "log.every_steps": 0, "mesh.fsdp": 0, "memory.fit": "small",
    "memory.weights": "fp16", "memory.offload_optimizer": "disk", "train.compile": "fast",
    "train.checkpointed_blocks": ("encoder",), "adapter.kind": "dora", "adapter.rank": 0, "adapter.alpha": 0.0,
    "adapter.dropout": 1.0, "adapter.targets": "attn2(", "instance.captions": "files",
    "instance.caption_dropout": -0.1, "instance.shuffled_captions": -1, "instance.kept_tags": -1,
    "tokens.add": ("<x>",), "tokens.learning_rate": 0.0, "tokens.fraction": 0.0,
    "instance.repeats": 0, "instance.masks": "yes", "instance.background_weight": 1.1, "data.buckets": ("448 x 576",),
    "ema.decay": 1.0, "ema.device": "disk", "train.pull": -1.0,
}  # fmt: skip
FREE = {"model.source", "model.config", "model.revision", "model.variant", "instance.images", "instance.prompt",
        "prior.prompt", "prior.images", "checkpoint.dir", "samples.prompts", "data.flip", "train.text_encoder",
        "samples.before_after", "mesh.topology", "memory.fused_backward", "memory.vae_tiling", "train.channels_last",
        "train.debiased_estimation", "train.zero_terminal_snr", "train.tf32", "train.unet",
        "instance.caption_column", "instance.image_column", "instance.revision", "concepts"}  # fmt: skip


def test_every_field_is_looked_at_here():
    assert OUT_OF_RANGE.keys() | FREE == flatten(default_config()).keys()


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE.items())
def test_out_of_range(valid, name, value):
    set_field(valid, name, value)
    assert refusal(check, valid).startswith(f"{name}={value!r} must be ")


@pytest.mark.parametrize(
    ("name", "said"),
    [("train.steps", "must be at least 1, or 'auto'; to make pictures with an untrained model use the command sample"),
     ("train.learning_rate", "must be greater than 0, or 'auto'; to leave the UNet as it is set train.unet=false"),
     ("train.text_encoder_learning_rate",
      "must be greater than 0, or 'auto'; to leave the text encoder as it is set train.text_encoder=false"),
     ("prior.count", "must be at least 1, or 'auto'; to train without class images set prior.weight=0"),
     ("adapter.alpha", "must be greater than 0, or 'auto'; to train without adapters set adapter.kind=none"),
     ("adapter.rank", "must be at least 1; to train without adapters set adapter.kind=none"),
     ("tokens.learning_rate", "must be greater than 0; to train no new tokens leave tokens.add empty"),
     ("checkpoint.keep", "must be at least 1; a run resumes from the newest; to keep all give a large number"),
     ("samples.images_per_prompt", "must be at least 1; to make no previews set samples.every_steps=0")],
)  # fmt: skip
def test_what_people_mean_by_0(valid, name, said):
    set_field(valid, name, 0)
    assert refusal(check, valid) == f"{name}={settings.get(valid, name)!r} {said}"


AUTO = [field for field in settings.FIELDS if field.auto]


@pytest.mark.parametrize("field", AUTO, ids=lambda field: field.name)
def test_auto_is_a_value_of_its_own(write, field):
    """In a file of each kind, on the command line, and in a config that is assigned to; and a number again after it."""
    section, _, key = field.name.partition(".")
    one = field.auto(1)
    for text, value in (("auto", "auto"), ("1", one)):
        written = "'auto'" if text == "auto" else text
        before = f"    config.{field.name} = 'auto'\n" if text == "1" else ""
        for path, overrides in (
            (write("c.py", f"{GET_CONFIG}{before}    config.{field.name} = {written}\n    return config"), []),
            (write("c.yaml", f"{section}: {{{key}: {text}}}"), []),
            (write("c.json", json.dumps({section: {key: value}})), []),
            (write("d.yaml", f"{section}: {{{key}: auto}}"), [(field.name, text)]),
        ):
            got = settings.get(load_config(path, overrides), field.name)
            assert got == value and type(got) is type(value), path.name
    config = resolved(default_config())
    for value in ("auto", one, "auto"):
        config[section][key] = value
        assert settings.get(resolved(config), field.name) == value
    config[section][key] = [1]
    assert refusal(resolved, config).startswith(f"{field.name}=[1] must be of type ")


def test_auto_goes_nowhere_else():
    others = [field for field in settings.FIELDS if not field.auto and field.kind in (int, float)]
    assert others
    for field in others:
        said = refusal(set_field, default_config(), field.name, "auto")
        assert said.startswith(f"{field.name}='auto' must be of type {field.kind.__name__}, as its default")
    assert refusal(set_field, default_config(), "train.steps", "many").endswith("must be of type int or 'auto'")


def test_auto_passes_what_compares_numbers(valid):
    valid.train.update(steps="auto", learning_rate="auto", lr_warmup_steps=900, pull=1.0, text_encoder=True)
    valid.prior.count = "auto"
    check(valid)
    valid.train.update(lr_schedule="polynomial", lr_end=1.0, optimizer="prodigy", pull=0.0)
    check(valid)


# A value of each field that counts only with others, and what makes it count.
DEPENDENT = {
    "instance.caption_column": ("says", {"instance.captions": "metadata", "instance.prompt": ""}),
    "instance.kept_tags": (2, {"instance.shuffled_captions": 3}),
    "instance.background_weight": (0.5, {"instance.masks": "alpha"}),
    "instance.repeats": (3, {"concepts": ({"instance.images": "a"}, {"instance.images": "b"})}),
    "train.lr_cycles": (3, {"train.lr_schedule": "cosine_with_restarts"}),
    "train.lr_power": (2.0, {"train.lr_schedule": "polynomial"}),
    "train.lr_end": (1e-8, {"train.lr_schedule": "polynomial"}),
    "train.text_encoder_learning_rate": (1e-6, {"train.text_encoder": True}),
    "train.huber_delta": (0.2, {"train.loss": "huber"}),
    "train.huber_schedule": ("constant", {"train.loss": "smooth_l1"}),
    "train.checkpointed_blocks": (("mid_block",), {"train.gradient_checkpointing": "block"}),
    "adapter.rank": (4, {"adapter.kind": "lora"}),
    "adapter.alpha": (2.0, {"adapter.kind": "lora"}),
    "adapter.dropout": (0.1, {"adapter.kind": "lora"}),
    "adapter.targets": ("all", {"adapter.kind": "lora"}),
    "tokens.learning_rate": (1e-3, {"tokens.add": ("<x>=dog",)}),
    "tokens.fraction": (0.5, {"tokens.add": ("<x>=dog",)}),
    "ema.device": ("host", {"ema.decay": 0.9}),
    "data.crop_variants": (8, {"data.crop": "random"}),
}
# The same, where it is said and not refused: configs that are shared have them, and one override leaves them behind.
SAID = {
    "prior.images": ("classes", {"prior.weight": 0.0}, {"prior.weight": 0.5}),
    "prior.count": (100, {"prior.weight": 0.0}, {"prior.weight": 0.5}),
    "prior.solver": ("ddim", {"prior.weight": 0.0}, {"prior.weight": 0.5}),
    "prior.inference_steps": (10, {"prior.weight": 0.0}, {"prior.weight": 0.5}),
    "prior.guidance": (2.0, {"prior.weight": 0.0}, {"prior.weight": 0.5}),
    "prior.seed": (3, {"prior.weight": 0.0}, {"prior.weight": 0.5}),
    "train.learning_rate": (1e-4, {"train.unet": False, "tokens.add": ("<x>=dog",)}, {"train.text_encoder": True}),
    "train.adam_b1": (0.8, {"train.optimizer": "adafactor"}, {"train.optimizer": "adamw8bit"}),
    "train.adam_b2": (0.99, {"train.optimizer": "lion"}, {"train.optimizer": "adamw"}),
    "train.adam_eps": (1e-7, {"train.optimizer": "lion8bit"}, {"train.optimizer": "adamw"}),
    "samples.prompts": (("a dog",), {}, {"samples.before_after": True}),
    "samples.images_per_prompt": (1, {}, {"samples.every_steps": 5}),
}


def test_every_field_that_needs_others_is_tried_here():
    assert DEPENDENT.keys() | SAID.keys() == {field.name for field in settings.FIELDS if field.needs}


@pytest.mark.parametrize(("name", "value", "switch"), [(name, *pair) for name, pair in DEPENDENT.items()])
def test_a_setting_without_effect_is_refused(valid, name, value, switch):
    set_field(valid, name, value)
    for checked in (validate, validate_plan):
        said = refusal(checked, valid, "torch")
        other = next(iter(switch))
        now = settings.get(valid, other)
        assert said.startswith(f"{name}={value!r} has no effect: {other} must be ") and f", and is {now!r}; " in said
        assert said.endswith(f"; set that too, or leave {name} out")
    for other, on in switch.items():
        set_field(valid, other, on)
    validate(valid, "torch")
    assert not list(idle_fields(valid))


@pytest.mark.parametrize(("name", "value", "off", "on"), [(name, *three) for name, three in SAID.items()])
def test_a_setting_that_is_switched_off_is_said(valid, name, value, off, on):
    for field, given in {name: value, **off}.items():
        set_field(valid, field, given)
    validate(valid, "torch")
    (idle,) = idle_fields(valid)
    assert (idle.field.name, idle.setting) == (name, f"{name}={value!r}") and " must be " in idle.why
    for other, given in on.items():
        set_field(valid, other, given)
    validate(valid, "torch")
    assert not list(idle_fields(valid))


def test_settings_without_effect_in_concepts(valid):
    """What the run says need count in one of them; what a concept says of itself, in that one."""
    dog, cat = {"instance.images": "a", "instance.prompt": "a sks dog"}, {"instance.images": "b"}
    valid.instance.background_weight, valid.concepts = 0.5, (dog, {**cat, "instance.masks": "alpha"})
    check(valid)
    valid.concepts = (dog, cat)
    assert refusal(check, valid).startswith("instance.background_weight=0.5 has no effect: instance.masks must be")
    valid.instance.background_weight = 0.0
    valid.concepts = ({**dog, "instance.shuffled_captions": 2}, {**cat, "instance.kept_tags": 3})
    assert refusal(check, valid).startswith("concepts[1]: instance.kept_tags=3 has no effect: ")


def test_a_default_needs_nothing(valid):
    """Files that give every field, as a run's config.json does."""
    for name, value in flatten(default_config()).items():
        if name not in ("model.source", "instance.images", "instance.prompt", "prior.prompt"):
            set_field(valid, name, value)
    check(valid)
    assert not list(idle_fields(valid))


@pytest.mark.parametrize(("name", "value", "said"), [
    ("instance.prompt", "a sks dog, {caption}",
     "instance.prompt='a sks dog, {caption}' has a {caption}, and with instance.captions='none' there is nothing"),
    ("prior.prompt", "a dog, {caption}", "prior.prompt='a dog, {caption}' has a {caption}, and class images have no"),
    ("samples.prompts", ("a sks dog", "{caption}"), "samples.prompts has '{caption}', and previews have no captions"),
])  # fmt: skip
def test_braces_without_captions(valid, name, value, said):
    set_field(valid, name, value)
    assert refusal(check, valid).startswith(said)
    if name == "instance.prompt":
        valid.instance.captions = "text"
        check(valid)


def test_records_of_before(write):
    """Runs begun when 0 was "auto" in two fields, and fields without effect were taken."""
    fields = flatten(default_config()) | {"train.text_encoder_learning_rate": 0.0, "adapter.alpha": 0.0,
                                          "adapter.rank": 4, "train.lr_cycles": 2, "prior.count": 7, "train.steps": 9,
                                          "instance.images": "photos"}  # fmt: skip
    expected = flatten(default_config()) | {"prior.count": 7, "train.steps": 9, "instance.images": "photos"}
    assert of_record(json.loads(json.dumps(fields))) == json.loads(json.dumps(expected))
    record = {"backend": "torch", "run_id": "x", "config": fields}
    assert flatten(load_config(write("config.json", json.dumps(record)))) == expected
    lora = fields | {"adapter.kind": "lora", "adapter.alpha": 2.0, "train.text_encoder": True}
    kept = of_record(lora)
    assert (kept["adapter.rank"], kept["adapter.alpha"], kept["train.text_encoder_learning_rate"]) == (4, 2.0, "auto")
    assert of_record({"train.steps": 3}) == {"train.steps": 3}, "of a version with fewer fields"
    assert of_record({"concepts": [{"weight": "5e-1"}]}) == {"concepts": [{"weight": 0.5}]}


NUMBERS = sorted(field.name for field in settings.FIELDS if field.kind is float)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_finite(valid, name, value):
    set_field(valid, name, value)
    assert refusal(check, valid).startswith(f"{name}={value!r} must be a finite number, ")


@pytest.mark.parametrize(
    ("name", "value"),
    {"train.adam_b1": 0.0, "train.max_grad_norm": 0.0, "train.seed": 2**63 - 1, "checkpoint.every_steps": 0,
     "prior.weight": 0.0, "train.steps": 1, "data.resolution": 8}.items(),
)  # fmt: skip
def test_bounds_that_belong_to_the_range(valid, name, value):
    set_field(valid, name, value)
    check(valid)


@pytest.mark.parametrize(("name", "value", "said"), [
    ("train.precision", "fp16", "train.precision='fp16' must be one of 'fp32', 'bf16'"),
    ("train.optimizer", "adamw8bit", "train.optimizer='adamw8bit' must be one of 'adamw', 'prodigy'"),
    ("memory.fused_backward", True, "memory.fused_backward=True must be False"),
    ("memory.fit", "8GB", "memory.fit='8GB' must be ''"),
    ("train.attention", "xformers", "train.attention='xformers' must be one of 'auto', 'plain', 'chunked', 'splash',"
     " 'cudnn'"),
])  # fmt: skip
def test_what_only_torchbooth_has(valid, name, value, said):
    set_field(valid, name, value)
    assert refusal(validate, valid, "jax") == f"{said} with jaxbooth: only torchbooth has it"
    validate(valid, "torch")


@pytest.mark.parametrize(("name", "value", "said"), [
    ("train.gradient_checkpointing", "attention",
     "must be one of 'none', 'block' with torchbooth: only jaxbooth has it"),
    ("train.attention", "splash", "must be one of 'auto', 'xformers' with torchbooth: only jaxbooth has it"),
    ("checkpoint.dir", "gs://bucket/dog", "must be a local folder with torchbooth: only jaxbooth writes to buckets"),
])  # fmt: skip
def test_what_only_jaxbooth_has(valid, name, value, said):
    set_field(valid, name, value)
    assert refusal(validate, valid, "torch") == f"{name}={value!r} {said}"
    validate(valid, "jax")


@pytest.mark.parametrize(("name", "value", "wanted"), [
    ("train.precision", "fp16", "one of 'fp32', 'bf16'"), ("train.optimizer", "lion", "'adamw'"),
    ("memory.fused_backward", True, "False"), ("adapter.kind", "lora", "'none'"),
])  # fmt: skip
def test_what_does_not_go_with_weights_that_torchbooth_splits(valid, name, value, wanted):
    valid.mesh.fsdp = 2
    validate(valid, "torch")
    set_field(valid, name, value)
    said = f"{name}={value!r} must be {wanted} with mesh.fsdp=2: it does not go with weights that are split"
    assert refusal(validate, valid, "torch").startswith(said)
    valid.mesh.fsdp = 1
    validate(valid, "torch")


def test_the_meaning_of_a_field_says_which_backends_have_it():
    meanings = {field.name: field.meaning for field in settings.FIELDS}
    assert meanings["train.tf32"].startswith("torchbooth: float32 products in TF32")
    assert meanings["train.precision"].endswith(
        "with loss scaling; only torchbooth: fp16; with mesh.fsdp in torchbooth one of 'fp32', 'bf16'"
    )
    assert meanings["train.attention"].endswith(
        "; only jaxbooth: plain, chunked, splash, cudnn; only torchbooth: xformers"
    )
    assert meanings["checkpoint.dir"].endswith("; only jaxbooth: also gs://BUCKET/FOLDER")
    assert meanings["train.seed"] == "seed of everything random except class images"
    for field in settings.FIELDS:
        assert set(field.value_backends) <= set(field.rule.choices) and field.default not in field.value_backends
        assert not re.search("(jax|torch)booth", field.about), "the row says it"


@pytest.mark.parametrize(("fields", "said"), [
    ({"memory.fused_backward": True, "train.accumulation": 2, "train.batch_size": 2},
     "memory.fused_backward=true needs train.accumulation=1, not 2: a gradient is gone before the next piece"),
    ({"memory.fused_backward": True, "train.precision": "fp16"},
     "memory.fused_backward=true does not go with train.precision='fp16': whether an update must be skipped"),
    ({"memory.fused_backward": True, "train.compile": "default"},
     "memory.fused_backward=true does not go with train.compile='default': a compiled backward pass gives all"),
    ({"memory.weights": "bf16"}, "memory.weights='bf16' needs train.precision='bf16', not 'fp32': "),
    ({"memory.weights": "bf16", "train.precision": "fp16"}, "memory.weights='bf16' needs train.precision='bf16', "),
    ({"train.channels_last": True, "train.optimizer": "adamw8bit"}, "train.channels_last=true does not go with "),
    ({"train.channels_last": True, "memory.offload_optimizer": "always"}, "train.channels_last=true does not go with "),
    ({"train.channels_last": True, "train.precision": "bf16", "memory.weights": "bf16"}, "train.channels_last=true"),
    ({"train.compile": "reduce-overhead", "train.accumulation": 2, "train.batch_size": 2},
     "train.compile='reduce-overhead' needs train.accumulation=1, not 2: its CUDA graphs overwrite the gradients"),
])  # fmt: skip
def test_memory_techniques_that_do_not_go_together(valid, fields, said):
    for name, value in fields.items():
        set_field(valid, name, value)
    assert refusal(validate, valid, "torch").startswith(said)


@pytest.mark.parametrize(("text", "gib"), [("8GB", 8), ("6 GiB", 6), ("11.5g", 11.5), ("8", None), ("0GB", None)])
def test_a_cards_memory(text, gib):
    assert memory_size(text) == (gib and gib * 2**30)


@pytest.mark.parametrize(("fields", "said"), [
    ({"adapter.kind": "lora"}, "train.pull=1.0 must be 0 with adapter.kind='lora': adapters begin at 0, so train"),
    ({"train.unet": False, "tokens.add": ("<x>=a",)}, "train.pull=1.0 must be 0 where only new tokens train: "),
    ({"memory.fused_backward": True}, "train.pull=1.0 must be 0 with memory.fused_backward=true or"),
    ({"memory.weights": "bf16", "train.precision": "bf16"}, "train.pull=1.0 must be 0 with memory.fused_backward=true"),
    ({"train.pull": 2e5}, "train.pull=200000.0 must be less than 200000, 1 / the learning rate: an update would go"),
])  # fmt: skip
def test_what_cannot_be_pulled(valid, fields, said):
    valid.train.pull = 1.0
    validate(valid, "torch")
    for name, value in fields.items():
        set_field(valid, name, value)
    assert refusal(validate, valid, "torch").startswith(said)


def test_accumulation_splits_the_batch_of_an_update(valid):
    valid.train.accumulation = 4
    said = refusal(check, valid)
    assert said.startswith("train.accumulation=4 must divide train.batch_size=1, ")
    assert said.endswith("what older scripts call batch 1 with accumulation 4 is batch_size=4 with accumulation=4 here")
    valid.train.batch_size = 8
    check(valid)


@pytest.mark.parametrize(("fields", "said"), [
    ({"lr_warmup_steps": 800}, "train.lr_warmup_steps=800 must be less than train.steps=800"),
    ({"lr_schedule": "polynomial", "lr_end": 5e-6}, "train.lr_end=5e-06 must be less than train.learning_rate=5e-06"),
    ({"debiased_estimation": True, "min_snr_gamma": 5.0},
     "train.debiased_estimation=true does not go with train.min_snr_gamma=5.0: both set the loss weights of timesteps"),
])  # fmt: skip
def test_fields_of_an_update_that_do_not_go_together(valid, fields, said):
    valid.train.update(fields)
    assert refusal(check, valid).startswith(said)
    valid.train.update(lr_warmup_steps=0, lr_end=1e-7, text_encoder=True, min_snr_gamma=0.0)
    check(valid)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [("train.steps", 2.0, "of type int"), ("train.steps", "many", "of type int"), ("train.steps", True, "of type int"),
     ("train.learning_rate", "5e-6", "of type float"), ("train.learning_rate", None, "of type float"),
     ("instance.prompt", 3, "of type str"), ("data.flip", "no", "true or false"), ("data.flip", 1, "true or false"),
     ("samples.prompts", "a photo", "a list of strings"), ("samples.prompts", [1], "a list of strings")],
)  # fmt: skip
def test_wrong_type(name, value, wanted):
    assert f"{name}={value!r} must be {wanted}" in refusal(set_field, default_config(), name, value)


def test_lossless_conversions():
    config = default_config()
    set_field(config, "train.learning_rate", 1)
    set_field(config, "samples.prompts", ["a", "b"])
    assert type(config.train.learning_rate) is float and config.train.learning_rate == 1
    assert config.samples.prompts == ("a", "b")


def test_validate_checks_types_too(valid):
    valid.unlock()
    valid.train["steps"] = None
    assert "train.steps=None must be of type int" in refusal(check, valid)


PY = (
    GET_CONFIG
    + """
    config.train.steps, config.train.learning_rate, config.data.flip = 12, 2e-6, True
    config.prior.weight = 1
    config.samples.prompts = ["a photo", "another, with a comma"]
    return config
"""
)
TREE = {"train": {"steps": 12, "learning_rate": 2e-6}, "data": {"flip": True}, "prior": {"weight": 1},
        "samples": {"prompts": ["a photo", "another, with a comma"]}}  # fmt: skip


def test_python_yaml_and_json_give_the_same(write):
    loaded = [flatten(load_config(write(f"config.{suffix}", text))) for suffix, text in
              {"py": PY, "yaml": yaml.safe_dump(TREE), "yml": yaml.safe_dump(TREE), "YAML": yaml.safe_dump(TREE),
               "json": json.dumps(TREE)}.items()]  # fmt: skip
    assert all(config == loaded[0] for config in loaded)
    assert loaded[0]["train.steps"] == 12 and loaded[0]["prior.weight"] == 1.0 and loaded[0]["data.flip"] is True
    assert loaded[0]["samples.prompts"] == ("a photo", "another, with a comma")
    assert loaded[0] != flatten(default_config())


AS_SEEN = [
    ("train.learning_rate", "5e-6", 5e-6), ("train.learning_rate", "1E-4", 1e-4), ("prior.weight", ".5", 0.5),
    ("prior.weight", "1", 1.0), ("prior.weight", "1.", 1.0), ("train.learning_rate", "0.000_1", 1e-4),
    ("train.steps", "010", 10), ("train.steps", "1_000", 1000), ("train.seed", "0x10", 16), ("train.steps", "+5", 5),
    ("data.flip", "true", True), ("data.flip", "False", False), ("data.flip", "yes", True), ("data.flip", "off", False),
    ("model.revision", "010", "010"), ("model.revision", "1234567", "1234567"), ("model.revision", "1e5", "1e5"),
    ("model.revision", "2024-01-02", "2024-01-02"), ("model.revision", "1:30", "1:30"),
    ("instance.prompt", "no", "no"), ("instance.prompt", "On", "On"), ("instance.prompt", "5", "5"),
    ("instance.prompt", ".5", ".5"), ("instance.prompt", "0x10", "0x10"), ("train.steps", "auto", "auto"),
    ("train.attention", "auto", "auto"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "value"), AS_SEEN)
def test_values_are_what_they_look_like(write, name, text, value):
    """In YAML, plain or in quotes, and on the command line alike; not what YAML 1.1 takes them for."""
    section, _, key = name.partition(".")
    path = write("c.py", GET_CONFIG + "    return config")
    loaded = [load_config(write("c.yaml", f"{section}:\n  {key}: {written}\n")) for written in (text, f"'{text}'")]
    for config in (*loaded, load_config(path, [(name, text)])):
        got = settings.get(config, name)
        assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("train.steps", "1:30"), ("train.steps", "12.0"), ("train.steps", "0b11"), ("prior.weight", "1:30"),
     ("data.flip", "1"), ("data.flip", "y")],
)  # fmt: skip
def test_values_that_look_like_nothing(write, name, text):
    section, _, key = name.partition(".")
    path = write("c.py", GET_CONFIG + "    return config")
    for call in (lambda: load_config(write("c.yaml", f"{section}: {{{key}: {text}}}")),
                 lambda: load_config(path, [(name, text)])):  # fmt: skip
        assert refusal(call).startswith(f"{name}={text!r} must be ")


def test_values_in_lists_are_what_they_look_like(write):
    text = """
samples: {prompts: [no, 5, 'a: b', 1:30]}
model:
concepts:
  - {instance: {images: 010, shuffled_captions: 010}, prior.count: 1_0, weight: 5e-1}
"""
    config = load_config(write("c.yaml", text))
    assert config.samples.prompts == ("no", "5", "a: b", "1:30")
    entry = {"instance.images": "010", "instance.shuffled_captions": 10, "prior.count": 10, "weight": 0.5}
    assert config.concepts == (entry,)
    path = write("c.py", GET_CONFIG + "    return config")
    override = "[{instance.images: 010, instance.shuffled_captions: 010, prior.count: 10, weight: .5}]"
    assert load_config(path, [("concepts", override)]).concepts == (entry,)
    assert "must be a list of fields" in refusal(load_config, path, [("concepts", "[a, b]")])


def test_json_stays_json(write):
    for text, said in (('{"train": {"steps": "5"}}', "train.steps='5' must be of type int"),
                       ('{"train": {"learning_rate": "5e-6"}}', "train.learning_rate='5e-6' must be of type float"),
                       ('{"instance": {"prompt": 5}}', "instance.prompt=5 must be of type str")):  # fmt: skip
        assert said in refusal(load_config, write("c.json", text))
    assert data_file.read(write("d.json", '{"a": [1, 0.5, true, null, "x"]}')) == {"a": [1, 0.5, True, None, "x"]}
    assert data_file.from_yaml("a: [1, null, ~, true]\nb:\n") == {"a": ["1", None, None, "true"], "b": None}


@pytest.mark.parametrize(
    ("name", "meant"),
    {"train.step": "'train.steps'", "trian.steps": "'train.steps'", "train.precison": "'train.precision'",
     "instance.prompts": "'instance.prompt'", "train.resolution": "'data.resolution'",
     "prior.weights": "'prior.weight'", "learning_rate": "'train.learning_rate' or 'tokens.learning_rate'",
     "train.batchsize": "'train.batch_size'", "train.text_encoder_lr": "'train.text_encoder_learning_rate'",
     "train.lr": "'train.learning_rate'", "tokens.lr": "'tokens.learning_rate'",
     "train.unet_lr": "'train.learning_rate'",
     "train.max_train_steps": "'train.steps'", "adapter.network_dim": "'adapter.rank'",
     "text_encoder_lr": "'train.text_encoder_learning_rate'"}.items(),
)  # fmt: skip
def test_a_misspelt_field_is_refused_with_a_suggestion(write, name, meant):
    section, _, key = name.rpartition(".")
    tree = {section: {key: 3}} if section else {key: 3}
    for call in (
        lambda: load_config(write("c.yaml", yaml.safe_dump(tree))),
        lambda: load_config(write("c.json", json.dumps(tree))),
        lambda: load_config(write("c.py", GET_CONFIG + "    return config"), [(name, "3")]),
        lambda: load_config(write("d.py", f"{GET_CONFIG}    config.{name} = 3\n    return config")),
    ):
        message = refusal(call)
        assert f"{name!r} does not exist; did you mean {meant}?" in message


def test_without_a_similar_field_the_section_is_listed():
    assert refusal(parse_text, "data.size", "3").endswith("data has: resolution, buckets, crop, crop_variants, flip, "
                                                          "encode_batch_size")  # fmt: skip
    assert refusal(parse_text, "foo.bar", "3").endswith("does not exist; the command `fields` lists them")
    assert "did you mean 'prior.seed' or 'train.seed'?" in refusal(parse_text, "random.seed", "3")


@pytest.mark.parametrize(
    ("body", "said"),
    {"    section = config.train\n    section.step = 3\n    return config": "'step' does not exist; did you mean",
     "    config.update({'train': {'step': 3}})\n    return config": "'step' does not exist; did you mean",
     "    config.train.steps = 'many'\n    return config": "'steps'",
     "    config.train.steps = 3\n": "get_config() gave None; it must return the config",
     "    raise RuntimeError('one\\ntwo')": "one two",
     "    raise RuntimeError": "RuntimeError",
     "    return config.train.steps.nothing": "no attribute 'nothing'"}.items(),
)  # fmt: skip
def test_what_goes_wrong_inside_a_python_config(write, body, said):
    path = write("c.py", GET_CONFIG + body)
    message = refusal(load_config, path)
    assert message.startswith(f"--config {path}: ") and said in message


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("c.yaml", "", "must hold sections"), ("c.yaml", "[1]", "must hold sections"),
     ("c.yaml", "a: [", "cannot be read"), ("c.json", "{", "cannot be read"),
     ("c.yaml", "train: {learning_rate: fast}", "learning_rate='fast' must be"),
     ("c.yaml", "train: 3", "'train' does not exist; train has: steps"), ("c.toml", "", "must be .py, .yaml or .json"),
     ("c.py", "def get_config(:", "invalid syntax"), ("c.py", "", "no attribute 'get_config'")],
)  # fmt: skip
def test_unusable_files(write, name, text, said):
    assert said in refusal(load_config, write(name, text))


def test_a_config_that_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "absent.py"):
        assert refusal(load_config, path) == f"--config {path} is not a file; give a .py, .yaml or .json config"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("train.steps", "7", 7), ("train.learning_rate", "2e-6", 2e-6), ("train.learning_rate", "1", 1.0),
     ("data.flip", "true", True), ("data.flip", "False", False), ("instance.prompt", "a: [b", "a: [b"),
     ("instance.prompt", "5", "5"), ("prior.prompt", "", ""), ("samples.prompts", "['a, b', c]", ("a, b", "c")),
     ("samples.prompts", "a photo", ("a photo",)), ("samples.prompts", "[]", ()), ("samples.prompts", "", ()),
     ("samples.prompts", "a photo of sks dog #1", ("a photo of sks dog #1",)),
     ("samples.prompts", "a photo: portrait", ("a photo: portrait",)), ("samples.prompts", "yes", ("yes",))],
)  # fmt: skip
def test_overrides(write, name, text, value):
    path = write("c.py", GET_CONFIG + "    return config")
    got = settings.get(load_config(path, [(name, text)]), name)
    assert got == value and type(got) is type(value)


def test_a_broken_list_is_no_prompt():
    text = "['a photo', b"
    assert "must be a list of strings" in refusal(set_field, default_config(), "samples.prompts",
                                                  parse_text("samples.prompts", text))  # fmt: skip


def test_help_says_the_rules():
    lines = {line.split()[0]: line for line in fields.table().splitlines()}
    assert lines["data.crop"].endswith("(one of 'center', 'random', 'focal')")
    assert lines["train.steps"].endswith("(at least 1, or 'auto')")
    assert "anything" not in fields.table()


def test_overrides_come_after_the_file_and_the_last_one_counts(write):
    path = write("c.yaml", "train: {steps: 3}")
    assert load_config(path, [("train.steps", "4"), ("train.steps", "5")]).train.steps == 5
    assert refusal(load_config, path, [("train.steps", "1e3")]).startswith("train.steps='1e3' must be of type int")
    assert "data.flip='0' must be true or false" in refusal(load_config, path, [("data.flip", "0")])


def test_paths_are_resolved_to_one_spelling(valid, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    valid.model.source, valid.instance.images, valid.checkpoint.dir = "~/models/sd15/", "photos", f"{tmp_path}/c/"
    got = resolved(valid)
    assert got.model.source == str(tmp_path / "models" / "sd15")
    assert got.instance.images == str(tmp_path / "photos") and got.checkpoint.dir == str(tmp_path / "c")
    assert got.prior.images == "" and got.instance.prompt == valid.instance.prompt
    assert valid.instance.images == "photos", "the caller's config stays as it is"
    assert flatten(resolved(got)) == flatten(got)
    valid.model.source = "owner/name"
    assert resolved(valid).model.source == "owner/name", "an id of the hub"
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolved(valid).model.source == str(tmp_path / "owner" / "name"), "a folder comes first"


def test_what_may_change_on_resume():
    longer = {"train.steps", "train.learning_rate", "prior.count", "checkpoint.every_steps", "checkpoint.keep",
              "samples.every_steps", "samples.prompts", "samples.solver", "samples.before_after",
              "export.precision", "mesh.fsdp", "ema.device",
              "train.accumulation", "train.lr_schedule", "train.lr_warmup_steps", "train.text_encoder_learning_rate",
              "model.source", "model.revision", "instance.images", "prior.images", "checkpoint.dir"}  # fmt: skip
    fixed = {"instance.prompt", "prior.weight", "train.batch_size", "train.seed",
             "train.precision", "train.text_encoder", "train.optimizer", "train.min_snr_gamma", "train.pull",
             "ema.decay", "data.resolution", "data.flip"}  # fmt: skip
    assert all(map(settings.may_change, longer)) and not any(map(settings.may_change, fixed))
    before, after = flatten(default_config()), flatten(default_config()) | {"train.steps": 7}
    assert changes(before, after) == {"train.steps": (800, 7)}
    assert changes({**before, "old.field": 1}, before) == {"old.field": (1, None)}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.name)
def test_shipped_configs_are_valid(path, tmp_path):
    config = load_config(path)
    for field, value in (("model.source", "m"), ("instance.images", "i"), ("instance.prompt", "a sks dog"),
                         ("prior.prompt", "a dog")):  # fmt: skip
        set_field(config, field, settings.get(config, field) or value)
    backend = "torch" if path.name.startswith("gpu_") else "jax"
    check(config, backend)
    record = {"backend": "jax", "run_id": "x", "config": flatten(config)}
    shared = tmp_path / "config.json"
    shared.write_text(json.dumps(record), encoding="utf-8")
    for off in ("prior.weight=0", "samples.every_steps=0"):
        check(load_config(shared, [tuple(off.split("="))]), backend)
