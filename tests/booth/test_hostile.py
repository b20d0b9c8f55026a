"""Files from strangers: code in them never runs, headers that lie are found out, names lead nowhere else.

Each payload, if anything ran it, would make a file: the canary.
"""

import io
import json
import os
import pickle
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from fake_backend import FakeBackend
from hub_server import files_of
from PIL import Image

from booth.commands import cli
from booth.common.errors import UserError
from booth.config.fields import FIELDS, memory_size
from booth.config.loading import load_config
from booth.data.images import read_examples
from booth.data.input_rules import validate
from booth.data.views import View
from booth.models.export_folder import export
from booth.models.open import open_pipeline
from booth.models.tokenizer import Tokenizer
from booth.train import latent_cache, loop
from booth.train.checkpoints import Checkpoints
from torchbooth.pickles import convert

ID = "owner/tiny"
UNET = "unet/diffusion_pytorch_model.safetensors"
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def pickles(path):
    """What touches `path` if it is unpickled, as pickle, PyTorch and NumPy write it."""
    import torch

    def written(save):
        buffer = io.BytesIO()
        save(buffer)
        return buffer.getvalue()

    array = np.array([Payload(path)], dtype=object)
    return {
        "pickle": pickle.dumps(Payload(path)),
        "torch": written(lambda buffer: torch.save({"conv_in.weight": Payload(path)}, buffer)),
        "npy": written(lambda buffer: np.save(buffer, array)),
        "npz": written(lambda buffer: np.savez(buffer, moments=array)),
    }


KINDS = ("pickle", "torch", "npy", "npz")


def tags(path):
    """YAML that touches `path` if tags make objects."""
    return {
        "function": f"!!python/object/apply:builtins.open ['{path}', w]",
        "shell": f"!!python/object/apply:os.system ['echo > {path}']",
    }


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "a payload ran"


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A copy to damage. Files are hard links: replace them, never write into them."""
    return shutil.copytree(tiny_pipeline, tmp_path / "model", copy_function=os.link)


def replace(path, content):
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def edit_json(path, **changes):
    replace(path, json.loads(path.read_bytes()) | changes)


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and "\0" not in message
    return message


def everything_in(folder, *, but):
    """All paths below a folder, except those below `but`."""
    return {path for path in folder.rglob("*") if not path.is_relative_to(but)}


def test_the_payloads_work(tmp_path):
    import torch

    path = tmp_path / "touched"
    payloads = pickles(path)
    runs = {
        "pickle": lambda: pickle.loads(payloads["pickle"]),
        "torch": lambda: torch.load(io.BytesIO(payloads["torch"]), weights_only=False),
        "npy": lambda: np.load(io.BytesIO(payloads["npy"]), allow_pickle=True),
        "npz": lambda: np.load(io.BytesIO(payloads["npz"]), allow_pickle=True)["moments"],
        **{name: lambda tag=tag: yaml.unsafe_load(tag) for name, tag in tags(path).items()},
    }
    assert {*KINDS, *tags(path)} == runs.keys()
    for name, run in runs.items():
        run()
        assert path.exists(), name
        path.unlink()


# Pickles.


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_pickles(folder, canary, kind):
    content = pickles(canary)[kind]
    replace(folder / UNET, content)
    assert "unet/diffusion_pytorch_model.safetensors is missing, truncated or broken" in refusal(open_pipeline, folder)
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")
    assert "unet/ has no diffusion_pytorch_model.safetensors, only PyTorch pickles" in refusal(open_pipeline, folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".safetensors"])
def test_single_files(tmp_path, canary, kind, suffix):
    file = tmp_path / f"model{suffix}"
    replace(file, pickles(canary)[kind])
    said = "is missing, truncated or broken" if suffix == ".safetensors" else "is a pickle, which can run code"
    assert said in refusal(open_pipeline, file)
    said = "need no converting" if suffix == ".safetensors" else "which is never run"
    assert said in refusal(convert, file, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_vocabularies_that_are_pickles(tiny_pipeline, tmp_path, canary, kind):
    for whole in (True, False):
        for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            tokenizer = shutil.copytree(tiny_pipeline / "tokenizer", tmp_path / f"tokenizer-{whole}-{name}")
            if not whole:  # as older pipelines are
                (tokenizer / "tokenizer.json").unlink()
            replace(tokenizer / name, pickles(canary)[kind])
            try:
                assert Tokenizer(tokenizer, 77)(["a photo"]).shape == (1, 77)  # one that is not read
            except UserError as error:
                assert "is broken" in str(error) and "\n" not in str(error)


def test_vocabularies_that_break_the_library(tiny_pipeline, tmp_path):
    """Rust's panics are no Exceptions."""
    tokenizer = shutil.copytree(tiny_pipeline / "tokenizer", tmp_path / "tokenizer")
    edit_json(tokenizer / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": ""})
    assert "tokenizer is broken (Precompiled: Error" in refusal(Tokenizer, tokenizer, 77)


@pytest.mark.parametrize("number", [1024, 2**31, 2**32 - 1])
def test_vocabularies_that_the_text_encoder_has_not(tiny_pipeline, tmp_path, number):
    tokenizer = shutil.copytree(tiny_pipeline / "tokenizer", tmp_path / "tokenizer")
    (tokenizer / "tokenizer.json").unlink()
    vocabulary = json.loads((tokenizer / "vocab.json").read_bytes())
    edit_json(tokenizer / "vocab.json", **{"photo</w>": number})
    assert f"it makes token {number}, and the text encoder has 1024" in refusal(Tokenizer, tokenizer, 77, 1024)
    edit_json(tokenizer / "vocab.json", **{"photo</w>": vocabulary["photo</w>"]})
    assert Tokenizer(tokenizer, 77, 1024)(["photo"])[0, 1] == vocabulary["photo</w>"]


@pytest.mark.parametrize("kind", KINDS)
def test_cached_moments_that_are_pickles(photos, tmp_path, canary, kind):
    (example, *_) = read_examples(sorted(photos.iterdir()), "a photo", "instance", "instance.images")
    views = [View(example, (64, 64), 0, 0, False)]
    arguments = tmp_path / "cache", FakeBackend(None), None, views, "hash", 1
    right = latent_cache.moments(*arguments)[views[0]]
    (file,) = (tmp_path / "cache").iterdir()
    replace(file, pickles(canary)[kind])
    assert (latent_cache.moments(*arguments)[views[0]] == right).all()


def torch_state():
    import torch

    from torchbooth.step import State

    parameter = torch.nn.Parameter(torch.arange(8.0))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    return State(None, {"unet.weight": parameter}, optimizer, scaler, None, None)


def jax_state():
    import jax.numpy as jnp
    import optax

    from jaxbooth.step import State

    trainable = {"unet.weight": jnp.arange(8.0)}
    return State(None, trainable, optax.adam(1e-3).init(trainable))


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_checkpoints_that_are_pickles(tmp_path, canary, framework):
    if framework == "torch":
        from torchbooth import checkpoint

        state, read = torch_state(), {"trainable.safetensors", "optimizer.safetensors", "loss_scale.json"}
    else:
        from jaxbooth import checkpoint

        state, read = jax_state(), {"trainable/_METADATA", "trainable/manifest.ocdbt", "optimizer/manifest.ocdbt"}
    backend = SimpleNamespace(save=checkpoint.save, restore=checkpoint.restore)
    checkpoints = Checkpoints(tmp_path / "checkpoints", "run")
    checkpoints.save(backend, state, 1, 1)
    assert checkpoints.restore(backend, state, checkpoints.find(1))
    whole, damaged = files_of(checkpoints.path(1)), set()
    assert whole.keys() >= read
    for content in pickles(canary).values():
        for name in sorted(whole):
            replace(checkpoints.path(1) / name, content)
            try:
                checkpoints.restore(backend, state, checkpoints.find(1))
            except UserError as error:
                assert "is damaged (" in str(error) and len(str(error).splitlines()) == 1
                damaged.add(name)
            replace(checkpoints.path(1) / name, whole[name])
    assert damaged >= read | {"checkpoint.json"}
    assert checkpoints.restore(backend, state, checkpoints.find(1))


# Code.


def bring_code(folder, canary):
    """Puts modules that touch the canary wherever diffusers and transformers look for them."""
    for place in ("", *COMPONENTS, "safety_checker"):
        (folder / place).mkdir(exist_ok=True)
        for name in ("my_code", "pipeline", "modeling", "__init__"):
            (folder / place / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')", encoding="utf-8", newline="\n")


BROUGHT = [
    *({name: ["my_code", "UNet2DConditionModel"]} for name in (*COMPONENTS, "safety_checker", "extra")),
    {"_class_name": ["pipeline", "StableDiffusionPipeline"]},
    {"unet": ["unet.my_code", "UNet2DConditionModel"]},
    {"vae": ["os", "AutoencoderKL"]},
    {"tokenizer": ["my\ncode", "CLIPTokenizer"]},
    {"text_encoder": [["transformers"], "CLIPTextModel"]},
]  # fmt: skip


@pytest.mark.parametrize("entries", BROUGHT, ids=str)
def test_pipelines_with_code_of_their_own(folder, canary, entries):
    bring_code(folder, canary)
    edit_json(folder / "model_index.json", **entries)
    message = refusal(open_pipeline, folder)
    assert f"model_index.json has {next(iter(entries))}=" in message and "code that comes with the model" in message
    assert not {"my_code", "pipeline", "modeling"} & sys.modules.keys()


def test_pipelines_with_code_of_their_own_on_the_hub(hub, folder, canary):
    bring_code(folder, canary)
    edit_json(folder / "model_index.json", unet=["my_code", "UNet2DConditionModel"])
    hub.push(ID, files_of(folder))
    assert "code that comes with the model and is never run" in refusal(open_pipeline, ID)
    assert not [name for name in hub.downloads() if name.endswith((".py", ".safetensors"))]


def test_configs_that_name_code(folder, canary, caplog):
    """Keys with which the libraries' Auto classes would import it; ours name the classes themselves."""
    from torchbooth.networks import load

    bring_code(folder, canary)
    code = {
        "auto_map": {name: "modeling.Code" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")},
        "trust_remote_code": True, "custom_pipeline": "pipeline", "_module": "my_code",
    }  # fmt: skip
    for name in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
                 "tokenizer/tokenizer_config.json", "model_index.json"):  # fmt: skip
        edit_json(folder / name, **code)
    edit_json(folder / "tokenizer/tokenizer_config.json", tokenizer_class="Code", init_inputs=[])
    pipeline = open_pipeline(folder)
    assert Tokenizer(pipeline.tokenizer_path, 77)(["a photo"]).shape == (1, 77)
    assert type(load(pipeline).text_encoder).__name__ == "CLIPTextModel"
    assert not {"my_code", "pipeline", "modeling"} & sys.modules.keys()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_configs_that_name_kernels(folder, key):
    """transformers would fetch such a kernel from the hub and run it."""
    edit_json(folder / "text_encoder/config.json", **{key: "stranger/kernel"})
    assert f"text_encoder/config.json has {key}='stranger/kernel'" in refusal(open_pipeline, folder)


@pytest.mark.parametrize("name", ["function", "shell"])
def test_yaml_makes_no_objects(tmp_path, canary, name):
    tag = tags(canary)[name]
    for text in (f"train: {tag}", f"train:\n  steps: {tag}", f"? {tag}\n: 1", tag, f"samples:\n  prompts: [{tag}]"):
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8", newline="\n")
        assert "cannot be read" in refusal(load_config, tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("train: {steps: 3}", encoding="utf-8", newline="\n")
    for field in ("samples.prompts", "train.text_encoder"):
        message = refusal(load_config, tmp_path / "config.yaml", [(field, f"[{tag}]")])
        assert message.startswith(f"{field}=")


def test_python_is_code_and_yaml_is_data(tmp_path):
    text = f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef get_config():\n  pass\n"
    for suffix in (".yaml", ".json", ".py"):
        (tmp_path / f"config{suffix}").write_text(text, encoding="utf-8", newline="\n")
        refusal(load_config, tmp_path / f"config{suffix}")
        assert (tmp_path / "ran").exists() == (suffix == ".py")
    assert "A `.py` config is a program and is run; `.yaml` and `.json` are data only" in load_config.__doc__


# Safetensors headers.


def tensor(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def safetensors(header, data=bytes(16), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


LIES = {
    "longer than the file": safetensors({"a": tensor()}, length=10**6),
    "of 2**63 bytes": safetensors({"a": tensor()}, length=2**63),
    "of 2**64 - 1 bytes": safetensors({"a": tensor()}, length=2**64 - 1),
    "of no bytes": safetensors({"a": tensor()}, length=0),
    "overlapping": safetensors({"a": tensor(), "b": tensor()}),
    "with a hole": safetensors({"a": tensor(shape=(2,), offsets=(0, 8)), "b": tensor(shape=(1,), offsets=(12, 16))}),
    "backwards": safetensors({"a": tensor(offsets=(16, 0))}),
    "negative offsets": safetensors({"a": tensor(offsets=(-16, 0))}),
    "negative shape": safetensors({"a": tensor(shape=(-4,))}),
    "fractional shape": safetensors({"a": tensor(shape=(4.0,))}),
    "larger shape": safetensors({"a": tensor(shape=(5,))}),
    "smaller shape": safetensors({"a": tensor(shape=(3,))}),
    "product beyond 64 bits": safetensors({"a": tensor(shape=(2**32, 2**32))}),
    "dimension beyond 64 bits": safetensors({"a": tensor(shape=(2**64,))}),
    "many dimensions": safetensors({"a": tensor(shape=(1,) * 100 + (4,))}),
    "empty tensor": safetensors({"a": tensor(shape=(0,), offsets=(0, 0))}, b""),
    "huge empty tensor": safetensors({"a": tensor(shape=(0, 2**62), offsets=(0, 0))}, b""),
    "bytes left over": safetensors({"a": tensor()}, bytes(17)),
    "twice the same name": safetensors(
        b'{"a": %b, "a": %b}' % tuple(
            json.dumps(tensor(shape=(2,), offsets=part)).encode() for part in ((0, 8), (8, 16))
        )
    ),
    "unknown type": safetensors({"a": tensor("X9")}),
    "a type that no array has": safetensors({"position_ids": tensor("F8_E4M3", (16,))}),
    "booleans": safetensors({"a": tensor("BOOL", (16,))}),
    "not UTF-8": safetensors(b'{"\xff": %b}' % json.dumps(tensor()).encode()),
    "line break in a name": safetensors({"a\nb": tensor()}),
    "NUL in a name": safetensors({"a\0b": tensor()}),
    "not JSON": safetensors(b"hello   "),
    "no object": safetensors([1]),
    "a number for a tensor": safetensors({"a": 1}),
    "numbers in the metadata": safetensors({"__metadata__": {"a": 1}, "a": tensor()}),
    "deep": safetensors(b'{"a":' * 100_000),
    "deep metadata": safetensors(b'{"__metadata__":' + b"[" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(folder, lie):
    replace(folder / UNET, LIES[lie])
    message = refusal(open_pipeline, folder)
    assert str(folder / UNET) in message
    assert "is missing, truncated or broken (" in message or "is broken (" in message or " not a float type" in message


def test_headers_that_tell_the_truth(folder):
    """What the lies differ from is read, in whatever order the tensors lie."""
    parts = {"b": tensor(shape=(2,), offsets=(8, 16)), "a": tensor(shape=(1, 2), offsets=(0, 8))}
    replace(folder / UNET, safetensors(parts))
    assert {name: array.shape for name, array in open_pipeline(folder).tensors("unet").items()} == {
        "a": (1, 2), "b": (2,),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "link to nowhere", "link to itself"])
def test_weights_that_are_no_file(folder, kind):
    (folder / UNET).unlink()
    if kind == "folder":
        (folder / UNET).mkdir()
    else:
        (folder / UNET).symlink_to(folder / UNET if kind == "link to itself" else folder / "nowhere")
    assert "unet/ has no diffusion_pytorch_model.safetensors" in refusal(open_pipeline, folder)


@pytest.mark.parametrize("name", ["folder", "link", "absent"])
def test_shards_that_are_no_file(folder, name):
    (folder / UNET).unlink()
    (folder / "unet/folder.safetensors").mkdir()
    (folder / "unet/link.safetensors").symlink_to(folder / "nowhere")
    index = {"weight_map": {"a": f"{name}.safetensors"}}
    replace(folder / "unet/diffusion_pytorch_model.safetensors.index.json", index)
    assert f"{name}.safetensors is missing, truncated or broken" in refusal(open_pipeline, folder)


# Names.


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "../../secret", "/etc/passwd", "/tmp/secret.safetensors", "..", ".", "",
     "a\0.safetensors", "a\n.safetensors", "deeper/secret.safetensors", "secret.bin", 7, None, ["a.safetensors"], {}],
    ids=repr,
)  # fmt: skip
def test_shards_elsewhere(folder, shard):
    (folder / UNET).unlink()
    shutil.copyfile(folder / "vae/diffusion_pytorch_model.safetensors", folder / "secret.safetensors")
    index = {"weight_map": {"a": shard}}
    replace(folder / "unet/diffusion_pytorch_model.safetensors.index.json", index)
    assert "unet/diffusion_pytorch_model.safetensors.index.json is broken" in refusal(open_pipeline, folder)


@pytest.mark.parametrize("name", ["../evil", "/evil", "..", "", "a\0b", "evil/evil"])
def test_components_elsewhere(folder, tmp_path, name):
    """A component is a folder of its own name, or is not copied."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "config.json").write_bytes(b"{}")
    edit_json(folder / "model_index.json", **{name: ["transformers", "CLIPImageProcessor"]})
    before = everything_in(tmp_path, but=tmp_path / "out")
    export(open_pipeline(folder), tmp_path / "out", ())
    assert everything_in(tmp_path, but=tmp_path / "out") == before
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == set(COMPONENTS)


STRANGE = ["../evil.json", "/evil.json", "tokenizer/../../evil.json", "tokenizer/../evil.json", "tokenizer/\0.json",
           "tokenizer/..\\..\\evil.json", "tokenizer/a\nb.json", "..", "", "tokenizer/.", "C:/evil.json", "C:evil.json",
           "unet/../../model.safetensors", "../model.safetensors", "unet/diffusion_pytorch_model.\0.safetensors",
           "unet/diffusion_pytorch_model.a\\b.safetensors", "~/evil.json", "tokenizer/evil.py"]  # fmt: skip


def test_files_on_the_hub_elsewhere(hub, tiny_pipeline, tmp_path):
    tiny = files_of(tiny_pipeline)
    commit = hub.push(ID, {**dict.fromkeys(STRANGE, b"evil"), **tiny})
    before = everything_in(tmp_path, but=tmp_path / "cache")
    pipeline = open_pipeline(ID)
    assert pipeline.weights
    assert sorted(hub.downloads()) == sorted(tiny)
    assert everything_in(tmp_path, but=tmp_path / "cache") == before
    assert files_of(tmp_path / "cache" / "models--owner--tiny" / "snapshots" / commit) == tiny
    assert len(list((tmp_path / "cache" / "models--owner--tiny" / "snapshots").iterdir())) == 1


@pytest.mark.parametrize(
    "revision", ["../../../evil", "/evil", "refs/../../../../evil", "a\0b", "a b", "a\\b", "C:evil"]
)
def test_revisions_elsewhere(hub, tiny_pipeline, tmp_path, revision):
    """Even if the hub had a branch of that name."""
    hub.push(ID, files_of(tiny_pipeline), revision)
    before = set(tmp_path.rglob("*"))
    assert f"model.revision={revision!r} is no name of a branch" in refusal(open_pipeline, ID, "", revision)
    assert set(tmp_path.rglob("*")) == before and not hub.requests


def test_commits_elsewhere(hub, tiny_pipeline, tmp_path):
    commit = hub.push(ID, files_of(tiny_pipeline))
    hub.commits["../../../evil"] = hub.commits[commit]
    hub.revisions[ID]["main"] = "../../../evil"
    assert "the hub says that it is commit '../../../evil'" in refusal(open_pipeline, ID)
    assert not list(tmp_path.rglob("*evil*")) and not hub.downloads()


PROMPTS = ["../../evil", "/evil", "..", "C:\\evil", "a\0b", "con", "a" * 500, "\x1b[31m", "ä/ö", "%s{0}", "a\nb"]


def test_prompts_make_no_paths(tiny_pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("booth.commands.sample.load_backend", lambda package: FakeBackend)
    before = everything_in(tmp_path, but=tmp_path / "out")
    given = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    command = ["sample", "--model", tiny_pipeline, "--out", tmp_path / "out", "--steps", 1, "--batch-size", 11]
    assert cli.main("torchbooth", [*map(str, command), *given]) == 0
    assert everything_in(tmp_path, but=tmp_path / "out") == before
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(names) == len(PROMPTS) + 1 and all(re.fullmatch(r"grid\.png|\d{3}[\w-]*-seed0\.png", n) for n in names)
    assert "000-evil-seed0.png" in names and "002-seed0.png" in names and "004-a-b-seed0.png" in names
    capsys.readouterr()
    assert cli.main("torchbooth", [*map(str, command), "--prompt", "a\udcff"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == r"torchbooth: error: the prompt 'a\udcff' is not all UTF-8; write it again"


def test_prompts_of_a_run_make_no_paths(tiny_config, tmp_path):
    tiny_config.instance.prompt, tiny_config.prior.prompt = "../../sks\0robot", "/evil"
    tiny_config.samples.prompts, tiny_config.samples.every_steps = ("../../../evil", "a\0b"), 1
    tiny_config.samples.inference_steps, tiny_config.train.steps = 1, 1
    before = everything_in(tmp_path, but=tmp_path / "run")
    run = loop.train(FakeBackend, tiny_config, tmp_path / "run")
    assert len(run.metrics) == 1 and (run.path / "samples" / "step-000001.png").is_file()
    assert everything_in(tmp_path, but=tmp_path / "run") == before


# Configs.

PATHS = [field.name for field in FIELDS if field.is_path]
assert {"model.source", "instance.images", "prior.images", "checkpoint.dir"} <= set(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_no_nul_in_paths(tiny_config, tmp_path, name):
    section, _, key = name.partition(".")
    rule = "must be a path, and no path has a NUL character in it"
    said = rf"{name}='a\x00b' {rule}"
    for suffix, text in ((".yaml", f'{section}:\n  {key}: "a\\0b"\n'), (".json", f'{{"{name}": "a\\u0000b"}}')):
        (tmp_path / f"config{suffix}").write_text(text, encoding="utf-8", newline="\n")
        assert refusal(load_config, tmp_path / f"config{suffix}") == said
    (tmp_path / "empty.yaml").write_text("train:\n", encoding="utf-8", newline="\n")
    assert refusal(load_config, tmp_path / "empty.yaml", [(name, "a\0b")]) == said
    tiny_config[section][key] = "a\0b"
    message = refusal(loop.train, FakeBackend, tiny_config, tmp_path / "run")
    assert message.startswith(f"{name}=") and message.endswith(rf"a\x00b' {rule}")
    assert not (tmp_path / "run").exists()


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "config.json").write_bytes(rb'{"instance": {"prompt": "a \ud800 dog"}}')
    said = r"instance.prompt='a \ud800 dog' must be text, and that is not all UTF-8"
    assert refusal(load_config, tmp_path / "config.json") == said
    (tmp_path / "config.json").write_bytes(b'{"model": {"source": "photos-\xc3\xa4"}}')
    assert load_config(tmp_path / "config.json").model.source == "photos-ä"
    # Linux has folders whose names are no text.
    path = os.fsdecode(b"photos-\xe4") if sys.platform == "linux" else "photos"
    assert load_config(tmp_path / "config.json", [("instance.images", path)]).instance.images == path


BOMB = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x, x]"] + [
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
])  # fmt: skip
MERGES = "\n".join(["a: &a {x: 1, y: 2}"] + [
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
])  # fmt: skip
DEEP = 100_000
UNREADABLE = {
    "bomb.yaml": (BOMB, r"\*a: aliases are not read"),
    "merges.yaml": (MERGES, r"\*a: aliases are not read"),
    "itself.yaml": ("train: &a\n  steps: *a\n", r"\*a: aliases are not read"),
    "deep.yaml": ("[" * DEEP, "recursion"),
    "deep-block.yaml": ("- " * DEEP, "recursion"),
    "deep.json": ("[" * DEEP, "recursion"),
    "deep-objects.json": ('{"a":' * DEEP, "recursion"),
    "closed.json": ('{"train": {"steps": ' + "[" * 900 + "]" * 900 + "}}", r"train\.steps=\[\[\[|recursion"),
    "sections.json": ('{"train": ' * 900 + "1" + "}" * 900, "does not exist|recursion"),
    "date.yaml": ("train:\n  steps: 2001-01-01\n", r"train\.steps='2001-01-01' must be of type int or 'auto'"),
    "no-date.yaml": ("train:\n  steps: !!timestamp 2001-13-45\n", "month must be in 1..12"),
    "bool.yaml": ("train:\n  unet: !!bool maybe\n", "maybe"),
    "timestamp.yaml": ("train:\n  steps: !!timestamp never\n", "NoneType"),
    "empty-int.yaml": ("train:\n  steps: !!int ''\n", "index out of range"),
    "binary.yaml": ("train:\n  steps: !!binary aGVsbG8=\n", "train.steps=b'hello' must be of type int"),
    "set.yaml": ("train:\n  steps: !!set {1, 2}\n", r"train\.steps=\{'1', '2'\} must be of type int"),
    "huge.yaml": (f"train:\n  steps: 0x{'f' * 5000}\n", r"train\.steps must be less than 2\*\*64"),
    "negative.yaml": (f"train:\n  learning_rate: -0x{'f' * 5000}\n", "rate='-0xf.*' must be of type float"),
    "digits.yaml": (f"train:\n  steps: {'9' * 5000}\n", "train.steps='999.*' must be of type int"),
    "digits.json": (f'{{"train": {{"steps": {"9" * 5000}}}}}', "4300"),
    "nan.json": ('{"train": {"steps": NaN}}', "train.steps=nan must be of type int"),
    "twice.yaml": ("train:\n  steps: 1\nprior:\n  count: 1\ntrain:\n  batch_size: 2\n", "'train' is there twice"),
    "twice.json": ('{"train": {"steps": 1, "batch_size": 1, "steps": 2}}', "'steps' is there twice"),
    "list.yaml": ("- train\n", "must hold sections"),
    "null.yaml": ("train:\n  steps:\n", "train.steps=None must be of type int"),
    "key.yaml": ("? [1, 2]\n: 3\n", "unhashable"),
    "break.yaml": ('"a\\nb": 1\n', r"config field 'a\\nb' does not exist"),
    "long.json": (json.dumps({"train": {"steps": "x" * 10**6}}), "train.steps='xxx.*' must be of type int"),
    "two.yaml": ("train:\n  steps: 1\n---\ntrain:\n  steps: 2\n", "single document"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_configs_that_are_unreadable(tmp_path, name):
    text, said = UNREADABLE[name]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="\n")
    message = refusal(load_config, tmp_path / name)
    assert re.search(said, message) and len(message) < 1000


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_configs_in_other_encodings(tmp_path, suffix):
    text = '{"train": {"steps": 3}}'
    path = tmp_path / f"config{suffix}"
    path.write_text(text, encoding="utf-8-sig", newline="\n")
    assert load_config(path).train.steps == 3
    for content in (
        text.encode("utf-16"),
        b"\xff\xfe\x00",
        b"\0" * 100,
        Image.new("RGB", (9, 9)).tobytes(),
        b"\x80\x04",
    ):
        path.write_bytes(content)
        assert f"--config {path} " in refusal(load_config, path)


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, "9" * 5000, "\ufeff{}", "NaN", "", "\0", "null"])
def test_json_of_pipelines_that_is_unreadable(folder, name, text):
    replace(folder / name, text.encode())
    message = refusal(open_pipeline, folder)
    assert f"{name} is no JSON" in message or f"{name} must hold a JSON object" in message


@pytest.mark.parametrize("value", ["1", True, ["1"], {}, float("nan"), float("inf"), -1, 10**12])
@pytest.mark.parametrize(
    ("name", "key"),
    [("vae", "block_out_channels"), ("vae", "latent_channels"), ("text_encoder", "max_position_embeddings"),
     ("text_encoder", "vocab_size"), ("scheduler", "num_train_timesteps"), ("scheduler", "beta_start"),
     ("scheduler", "beta_end"), ("scheduler", "trained_betas")],
)  # fmt: skip
def test_configs_with_impossible_values(folder, name, key, value):
    """A schedule of 10**12 steps would take all memory."""
    edit_json(folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json"), **{key: value})
    assert f"the config of its {name} is broken: {key} is {value!r}; download" in refusal(open_pipeline, folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("scaling_factor", None), ("scaling_factor", 0), ("scaling_factor", "1"), ("shift_factor", "0"),
     ("latent_channels", None), ("block_out_channels", []), ("block_out_channels", [64, 0])],
)  # fmt: skip
def test_vaes_with_impossible_values(folder, key, value):
    edit_json(folder / "vae/config.json", **{key: value})
    assert f"the config of its vae is broken: {key} is {value!r}; download it again" in refusal(open_pipeline, folder)


@pytest.mark.parametrize("text", ["(", "a{99999999999999999999}", "(" * 5000 + ")" * 5000, ""])
def test_patterns_that_are_none(tiny_config, text):
    tiny_config.adapter.targets = text
    assert "adapter.targets=" in refusal(validate, tiny_config, "torch")


@pytest.mark.parametrize(
    "text", ["!!bool maybe", "!!timestamp never", "!!int ''", "[" * DEEP, "*a", "!!python/name:os.x"]
)
def test_overrides_that_are_unreadable(tmp_path, text):
    (tmp_path / "empty.yaml").write_text("train:\n", encoding="utf-8", newline="\n")
    message = refusal(load_config, tmp_path / "empty.yaml", [("train.unet", text)])
    assert message.startswith("train.unet=")
    assert message.endswith("must be true or false, as its default True is") and len(message) < 500


def test_sizes_beyond_reason():
    assert memory_size("9" * 400 + "GB") is None and memory_size("8GB") == 2**33
