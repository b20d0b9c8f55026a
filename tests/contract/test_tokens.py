"""New tokens: their rows alone train where nothing else is asked for, and plain diffusers knows them."""

import importlib
import shutil

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.numpy import load_file

from booth.commands import cli
from booth.common.errors import UserError
from booth.models.lora_file import read_lora
from booth.models.new_tokens import ROWS, TABLE, file_names
from booth.models.open import open_pipeline
from booth.train import loop

TOKENS = ("<saya_token>", "<its_colour>")
ALONE = {"train.unet": False}
PIVOTAL = {"adapter.kind": "lora", "adapter.rank": 4, "tokens.fraction": 0.5}
WITH_ALL = {"train.text_encoder": True}
WITH_BOTH_ADAPTED = {"train.text_encoder": True, "adapter.kind": "lora", "adapter.rank": 4}


@pytest.fixture
def configured(tiny_config, tmp_path):
    def configured(fields):
        config = tiny_config
        config.tokens.add = ("<saya_token>=a", "<its_colour>=photo")
        config.instance.prompt = "a photo of <saya_token> in <its_colour>"
        config.tokens.learning_rate, config.train.learning_rate = 1e-2, 1e-4
        config.prior.images = str(tmp_path / "class_images")
        for name, value in fields.items():
            section, _, key = name.partition(".")
            config[section][key] = value
        return config

    return configured


def backend_of(package):
    return importlib.import_module(f"{package}.backend").Backend


def rows(run):
    files = [load_file(run.path / "tokens" / name) for name in file_names(TOKENS)]
    return np.stack([file[token] for file, token in zip(files, TOKENS, strict=True)])


def initial(config):
    table = open_pipeline(config.model.source).tensors("text_encoder")[TABLE]
    pipe = StableDiffusionPipeline.from_pretrained(config.model.source, safety_checker=None)
    return table, table[pipe.tokenizer(["a", "photo"], add_special_tokens=False)["input_ids"]][:, 0]


@pytest.mark.parametrize("package", ["torchbooth", pytest.param("jaxbooth", marks=pytest.mark.full)])
def test_tokens_alone(package, configured, tmp_path):
    config = configured(ALONE)
    run = loop.train(backend_of(package), config, tmp_path / "run")
    table, first = initial(config)
    learned = rows(run)
    assert learned.shape == first.shape and np.abs(learned - first).min(axis=1).max() > 0
    exported = open_pipeline(run.pipeline)
    assert np.array_equal(exported.tensors("text_encoder")[TABLE], np.concatenate([table, learned]))
    for component in ("unet", "vae", "text_encoder"):
        before, after = open_pipeline(config.model.source).tensors(component), exported.tensors(component)
        assert before.keys() == after.keys()
        assert all(name == TABLE or np.array_equal(before[name], after[name]) for name in before), "not one other bit"
    size = sum(path.stat().st_size for path in (run.path / "checkpoints").rglob("*") if path.is_file())
    assert size < 200_000, "two rows and their moments"

    pipe = StableDiffusionPipeline.from_pretrained(run.pipeline, safety_checker=None)
    ids = pipe.tokenizer(config.instance.prompt)["input_ids"]
    assert [number for number in ids if number >= len(table)] == [len(table), len(table) + 1]
    assert np.array_equal(pipe.text_encoder.get_input_embeddings().weight[ids[4]].detach(), learned[0])
    plain = StableDiffusionPipeline.from_pretrained(config.model.source, safety_checker=None)
    for file, token, row in zip(("saya_token", "its_colour"), TOKENS, learned, strict=True):
        plain.load_textual_inversion(run.path / "tokens" / f"{file}.safetensors")
        number = plain.tokenizer.convert_tokens_to_ids(token)
        assert np.array_equal(plain.text_encoder.get_input_embeddings().weight[number].detach(), row)


@pytest.mark.full
@pytest.mark.parametrize("fields", [PIVOTAL, WITH_ALL, WITH_BOTH_ADAPTED], ids=["pivotal", "all", "both adapted"])
def test_tokens_beside_what_else_trains(configured, tmp_path, fields):
    """Both backends alike, resumed to the bit, exported whole."""
    config = configured(fields)
    learned = {}
    for package in ("torchbooth", "jaxbooth"):
        whole = loop.train(backend_of(package), config, tmp_path / package)
        learned[package] = rows(whole)
        fraction = config.tokens.fraction
        config.train.steps, config.tokens.fraction = 2, 1.0
        after_two = rows(loop.train(backend_of(package), config, tmp_path / f"{package}-parts"))
        config.train.steps, config.tokens.fraction = 4, fraction
        parts = loop.train(backend_of(package), config, tmp_path / f"{package}-parts")
        assert np.array_equal(rows(parts), learned[package])
        assert np.array_equal(after_two, learned[package]) == (fraction == 0.5), "still from the third step on"
    _, first = initial(config)
    moved = np.linalg.norm(learned["torchbooth"] - first)
    assert np.linalg.norm(learned["jaxbooth"] - learned["torchbooth"]) < 1e-2 * moved
    out = tmp_path / "out"
    assert cli.main("torchbooth", ["export", "--run", str(tmp_path / "torchbooth"), "--out", str(out)]) == 0
    pipe = StableDiffusionPipeline.from_pretrained(out, safety_checker=None)
    assert len(pipe.tokenizer) == len(pipe.text_encoder.get_input_embeddings().weight) == 1026
    assert np.array_equal(pipe.text_encoder.get_input_embeddings().weight[1024:].detach(), learned["torchbooth"])
    assert (tmp_path / "torchbooth" / "lora").exists() == ("adapter.kind" in fields)
    if "adapter.kind" in fields:
        command = ["export", "--run", str(tmp_path / "torchbooth"), "--format", "kohya", "--out", f"{out}.safetensors"]
        assert cli.main("torchbooth", command) == 0
        lora = read_lora(tmp_path / "out.safetensors")
        said = lora.metadata["modelspec.trigger_phrase"]
        assert said == "a photo of out-saya_token in out-its_colour", "as files are named"
        assert lora.layers.keys() == read_lora(tmp_path / "torchbooth" / "lora").layers.keys(), "without new words"


def exported_rows(run, tmp_path, name, *arguments):
    out = tmp_path / f"{name}.safetensors"
    given = ["export", "--run", run, "--step", 2, *arguments, "--out", out]
    assert cli.main("torchbooth", [*map(str, given)]) == 0
    files = [load_file(out.with_name(f"{name}-{file}")) for file in file_names(TOKENS)]
    return np.stack([file[token] for file, token in zip(files, TOKENS, strict=True)])


def rows_of_step(run, step):
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "trainable.safetensors")[f"text_encoder.{ROWS}"]


def test_the_rows_of_the_exported_checkpoint(configured, tmp_path, capsys):
    """Not those of the last step; also where the run wrote none yet."""
    config = configured({**PIVOTAL, "tokens.fraction": 1.0, "checkpoint.every_steps": 2})
    run = loop.train(backend_of("torchbooth"), config, tmp_path / "run")
    expected = rows_of_step(run.path, 2)
    assert not np.array_equal(expected, rows(run))
    shutil.rmtree(run.path / "tokens")
    given = [
        "sample",
        "--run",
        run.path,
        "--prompt",
        "a <saya_token>",
        "--steps",
        1,
        "--negative-prompt",
        "<its_colour>",
    ]
    assert cli.main("torchbooth", [*map(str, given), "--out", str(tmp_path / "pictures")]) == 0
    text = Image.open(next((tmp_path / "pictures").glob("000-*.png"))).text["parameters"]
    assert text.startswith("a saya_token\nNegative prompt: its_colour\n"), "as WebUIs call them"
    for number, name in enumerate(("kohya", "peft", "single-file", "embedding")):
        found = exported_rows(run.path, tmp_path, f"o{number}", "--format", name)
        assert np.array_equal(found, expected) and found.dtype == np.float32, name
        assert (tmp_path / f"o{number}.safetensors").exists() == (name != "embedding")
    capsys.readouterr()
    (tmp_path / "o0.safetensors").unlink()
    again = ["export", "--run", str(run.path), "--format", "kohya", "--out", str(tmp_path / "o0.safetensors")]
    assert cli.main("torchbooth", again) == 2
    assert "o0-saya_token.safetensors, the file of a new token, exists; choose another name" in capsys.readouterr().err
    assert not (tmp_path / "o0.safetensors").exists()


def test_the_only_word_has_the_file_for_itself(configured, tmp_path, capsys):
    """Of a run that trained nothing else."""
    config = configured({**ALONE, "checkpoint.every_steps": 1, "train.steps": 2})
    config.tokens.add, config.instance.prompt = ("<saya_token>=a",), "a photo of <saya_token>"
    run = loop.train(backend_of("torchbooth"), config, tmp_path / "run").path
    given = ["export", "--run", str(run), "--step", "1", "--out", str(tmp_path / "saya.safetensors"), "--format"]
    assert cli.main("torchbooth", [*given, "kohya"]) == 2
    assert (
        "trained no LoRA (adapter.kind=none); leave --format out, or give --format embedding" in capsys.readouterr().err
    )
    assert cli.main("torchbooth", [*given, "embedding", "--precision", "fp16"]) == 2
    assert "--format embedding writes float32" in capsys.readouterr().err
    assert cli.main("torchbooth", [*given, "embedding"]) == 0
    content = load_file(tmp_path / "saya.safetensors")
    assert list(content) == ["<saya_token>"] and np.array_equal(content["<saya_token>"], rows_of_step(run, 1)[0])
    assert not np.array_equal(rows_of_step(run, 1), rows_of_step(run, 2))
    assert "saya.safetensors; in WebUIs the file's name is its word" in capsys.readouterr().err
    given[given.index("--out") + 1] = str(tmp_path / "kohya.safetensors")
    assert cli.main("torchbooth", [*given, "emb_params"]) == 0
    content = load_file(tmp_path / "kohya.safetensors")
    assert list(content) == ["emb_params"] and np.array_equal(content["emb_params"], rows_of_step(run, 1))
    pipe = StableDiffusionPipeline.from_pretrained(config.model.source, safety_checker=None)
    for file in ("saya", "kohya"):
        pipe.load_textual_inversion(tmp_path / f"{file}.safetensors", token=f"<{file}>")
        number = pipe.tokenizer.convert_tokens_to_ids(f"<{file}>")
        learned = pipe.text_encoder.get_input_embeddings().weight[number].detach()
        assert np.array_equal(learned, rows_of_step(run, 1)[0])
    capsys.readouterr()
    given[given.index("--out") + 1] = str(tmp_path / "saya.safetensors")
    assert cli.main("torchbooth", [*given, "embedding"]) == 2
    assert "saya.safetensors exists; choose another name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("add", "prompt", "said"),
    [(("photo</w>=a",), "a photo</w>", r"tokens\.add: this model has photo</w> already"),
     (("<x>=antidisestablishment",), "a <x>", r"initializer 'antidisestablishment' is \d+ tokens to this model"),
     (("<x>=a",), "a photo", r"tokens\.add: <x> is in no prompt or caption"),
     (("<x>",), "a <x>", r"tokens\.add=.* must be like '<saya_token>=girl'"),
     (("<x>=a", "<x>=b"), "a <x>", r"each token once")],
)  # fmt: skip
def test_what_cannot_be_added(configured, tmp_path, add, prompt, said):
    config = configured({})
    config.tokens.add, config.instance.prompt = add, prompt
    with pytest.raises(UserError, match=said):
        loop.train(backend_of("torchbooth"), config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_something_must_train(configured, tmp_path):
    config = configured(ALONE)
    config.tokens.add = ()
    with pytest.raises(UserError, match=r"train\.unet=false leaves nothing to train"):
        loop.train(backend_of("torchbooth"), config, tmp_path / "run")


def test_files_have_names_of_their_own():
    assert file_names(["<a>", "b*", "../x"]) == ["a.safetensors", "b.safetensors", "x.safetensors"]
    assert file_names(["<a>", "a", "**"]) == ["1-a.safetensors", "2-a.safetensors", "token.safetensors"]
