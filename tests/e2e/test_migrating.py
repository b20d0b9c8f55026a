"""docs/guide/migrating.md: every command of ours in it is run as written, but for a tiny model and few steps."""

import re
import shutil
from pathlib import Path

import pytest
from page_commands import OURS, blocks, commands, parts, smaller

from booth.config import foreign_flags
from booth.config.fields import FIELDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guide" / "migrating.md").read_text(encoding="utf-8")
NAMES = {field.name for field in FIELDS}
OFFICIAL = ("accelerate launch ", "python train_")

# What train_dreambooth.py can be given.
FLAGS = """
pretrained_model_name_or_path revision variant tokenizer_name instance_data_dir class_data_dir instance_prompt
class_prompt with_prior_preservation prior_loss_weight num_class_images output_dir seed resolution center_crop
train_text_encoder train_batch_size sample_batch_size num_train_epochs max_train_steps checkpointing_steps
checkpoints_total_limit resume_from_checkpoint gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr
lr_scheduler lr_warmup_steps lr_num_cycles lr_power use_8bit_adam dataloader_num_workers adam_beta1 adam_beta2
adam_weight_decay adam_epsilon max_grad_norm push_to_hub hub_token hub_model_id logging_dir allow_tf32 report_to
validation_prompt num_validation_images validation_steps mixed_precision prior_generation_precision local_rank
enable_xformers_memory_efficient_attention set_grads_to_none offset_noise snr_gamma pre_compute_text_embeddings
tokenizer_max_length text_encoder_use_attention_mask skip_save_text_encoder validation_images class_labels_conditioning
validation_scheduler
""".split()  # noqa: SIM905

BLOCKS, COMMANDS = blocks(PAGE), commands(PAGE)


def test_blocks_are_theirs_or_ours():
    assert all(block.startswith(OFFICIAL + OURS) for block in BLOCKS)
    assert len(COMMANDS) > 12 and len(BLOCKS) - len(COMMANDS) > 8
    assert all(block.count("\n") == block.count("\\\n") + 1 for block in BLOCKS), "one command each"


def test_every_field_named_exists():
    sections = "|".join(sorted({name.partition(".")[0] for name in NAMES}))
    named = set(re.findall(rf"(?<![\w/.])(?:{sections})\.\w+", PAGE.replace("--config.", "")))
    assert len(named) > 40 and named - NAMES <= {"metrics.jsonl"}


def tables():
    """{flag: what is said of it} of each of the page's two tables."""
    for part in PAGE.partition("## kohya's scripts")[::2]:
        rows = re.findall(r"^\| (`--.*?) \| (.*?) \|$", part, re.MULTILINE)
        yield {flag: here for flags, here in rows for flag in re.findall(r"`--(\w+)`", flags)}


def test_the_tables_say_what_the_command_line_says():
    diffusers, kohya = tables()
    assert diffusers == foreign_flags.DIFFUSERS and kohya == foreign_flags.KOHYA
    assert not diffusers.keys() & kohya.keys()


def test_every_flag_is_in_the_table():
    diffusers, kohya = tables()
    assert set(FLAGS) | {"rank", "save_steps", "pretrained_vae_name_or_path", "validation_epochs"} == diffusers.keys()
    for flag, here in {**diffusers, **kohya}.items():
        field = set(re.findall(r"`(\w+\.\w+)", here)) & NAMES
        options = ("`--workdir`", "`--push-to-hub ", "always; `--from-step`", "`--config`", "`concepts`")
        assert field or here.startswith(("not needed", "not yet", *options)), flag


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--learning_rate=1e-4"], "torchbooth: error: --learning_rate is an option of other scripts; here:"
      " --config.train.learning_rate=VALUE; docs/guide/migrating.md has all of them\n"),
     (["--learning-rate", "1e-4"], "--learning_rate is an option of other scripts; here: --config.train.learning"),
     (["--gradient_checkpointing"], "here: --config.train.gradient_checkpointing=block; docs"),
     (["--network_dim=8"], "here: --config.adapter.rank=VALUE (16); docs"),
     (["--lr_power=2"], "here: --config.train.lr_power=VALUE (and train.lr_end); docs"),
     (["--push_to_hub"], "here: --push-to-hub owner/name, or later push --run RUN --to owner/name; "),
     (["--scale_lr"], "here: not yet: multiply it yourself; docs"),
     (["--output_dir=out", "--v2"], "--output_dir is an option of other scripts; here: --workdir; "),
     (["--train.steps=4"], "unrecognized arguments: --train.steps=4; settings are given as train.steps=VALUE; "),
     (["--steps", "3"], "unrecognized arguments: --steps; settings are given as train.steps=VALUE; "),
     (["--dry_run"], "unrecognized arguments: --dry_run; did you mean --dry-run?; "),
     (["--nonsense"], "unrecognized arguments: --nonsense; torchbooth")],
)  # fmt: skip
@pytest.mark.parametrize("config", [["--config", str(ROOT / "configs" / "smoke.py")], []], ids=["config", "none"])
def test_flags_of_theirs_given_to_train(main, given, said, config):
    done = main("torchbooth", "train", *config, *given)
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1, done.err


def test_options_of_ours_are_not_theirs(main):
    done = main("torchbooth", "train", "--push-to-hub")
    assert done.code == 2 and "argument --push-to-hub: expected one argument" in done.err
    done = main("torchbooth", "sample", "--resolution=64")
    assert "other scripts" not in done.err, "only train has fields"


def test_every_flag_in_a_command_of_theirs_is_in_the_table():
    theirs = " ".join(block for block in BLOCKS if block.startswith(OFFICIAL))
    assert set(re.findall(r" --(\w+)", theirs)) <= {*FLAGS, "mixed_precision"}


def test_defaults_in_the_table():
    """What the table gives as our default, where the script's is another."""
    defaults = {field.name: field.default for field in FIELDS}
    rows = re.findall(r"`--\w+` \((.*?)\)[^|]*\| `([\w.]+)`, (\"?\w+\"?)", PAGE)
    given = {name: value.strip('"') for _, name, value in rows if not value.startswith("`")}
    assert len(given) >= 6
    assert given == {name: str(defaults[name]) for name in given}


def alone(words):
    """Return whether a command is one of several that train alike, in a folder that no other command uses."""
    text = " ".join(words)
    again = ("gpu_16gb", "gpu_12gb", "gpu_8gb", "dog-watched", "dog-cosine", "jaxbooth.train")
    return any(word in text for word in again)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all commands are given, one after another: later ones go on with what earlier ones made."""
    folder = tmp_path_factory.mktemp("migrating")
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_pipeline, photos):
    """As `smaller`."""
    return lambda words: smaller(words, tiny_pipeline, photos)


@pytest.mark.parametrize(
    "words",
    # The full suite has those that only train with other settings, and that no other command goes on from.
    [pytest.param(words, marks=[pytest.mark.full] * alone(words)) for words in COMMANDS],
    ids=[f"{n}-{words[0]}-{words[2]}" for n, words in enumerate(COMMANDS)],
)
def test_our_commands(words, folder, tiny, main, monkeypatch):
    monkeypatch.chdir(folder)
    package, command, _ = parts(words)
    assert package in ("torchbooth", "jaxbooth") and command in ("train", "sample", "export", "merge")
    done = main(package, command, *tiny(words))
    assert done.code == 0, done.err
    made = Path(words[words.index("--workdir" if command == "train" else "--out") + 1])
    if command == "train":
        lora = any("lora" in word for word in words)
        assert (made / ("lora/pytorch_lora_weights.safetensors" if lora else "pipeline/model_index.json")).is_file()
        again = "train.steps=1200" in words
        assert ("resumed from step 3" in done.err, "resumed from step 4" in done.err) == ("--from-step" in words, again)
        assert list((made / "samples").glob("*.png")) or "samples.every_steps" not in " ".join(words)
    elif made.suffix != ".safetensors":
        assert (made / ("grid.png" if command == "sample" else "model_index.json")).is_file()
    else:
        assert made.is_file()
