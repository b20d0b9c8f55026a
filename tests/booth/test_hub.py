"""Models from the hub, against a server on this machine: what is fetched, what is remembered, what is said."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_backend import FakeBackend
from hub_server import files_of
from huggingface_hub import constants

from booth.common.errors import UserError
from booth.config import sources
from booth.config.values import resolved
from booth.models import hub as hub_module
from booth.models.export_folder import export
from booth.models.open import open_pipeline
from booth.train import loop

ID = "owner/tiny"
UNET, VAE = (f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
TEXT = "text_encoder/model.safetensors"
WEIGHTS = {UNET, VAE, TEXT}
# What repositories on the hub hold besides.
DECOYS = {
    "README.md", "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors", "flax/config.json", "flax/model.safetensors",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin", "unet/diffusion_flax_model.msgpack",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "unet/model.onnx", "unet/lora.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json", "unet/diffusion_flax_model.msgpack.index.json",
    "text_encoder/pytorch_model.bin", "text_encoder/model.fp16.safetensors",
    "vae/old/diffusion_pytorch_model.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tiny_pipeline):
    """The tiny pipeline's files by name."""
    return files_of(tiny_pipeline)


@pytest.fixture
def repository(hub, tiny):
    """The commit of a repository with the tiny pipeline and everything else that there may be."""
    return hub.push(ID, {**dict.fromkeys(DECOYS, b"not wanted"), **tiny})


def with_components(files, **entries):
    """The files with other entries in model_index.json."""
    return {**files, "model_index.json": json.dumps(json.loads(files["model_index.json"]) | entries).encode()}


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_tensors(pipeline, folder):
    expected = open_pipeline(folder)
    for component in pipeline.family.networks:
        found, wanted = pipeline.tensors(component), expected.tensors(component)
        assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    return True


@pytest.mark.parametrize("source", ["owner/name", "stable-diffusion-v1-5/stable-diffusion-v1-5", "a/b.c_d-1"])
def test_ids(source):
    assert sources.is_id(source)


@pytest.mark.parametrize("source", ["./owner/name", "/owner/name", "~/name", "owner/name/", "a/b/c", "name", "../name",
                                    "owner\\name", "gs://owner/name", "", "o/näme"])  # fmt: skip
def test_what_is_always_a_folder(source):
    assert not sources.is_id(source)


ADDRESS = "https://huggingface.co/owner/name"


@pytest.mark.parametrize(
    ("source", "revision"),
    [("owner/name", ""), ("owner/name/", ""), (ADDRESS, ""), (ADDRESS + "/", ""),
     (ADDRESS.replace("https", "http"), ""),
     ("huggingface.co/owner/name", ""), ("https://hf.co/owner/name", ""), ("HTTPS://WWW.HuggingFace.co/owner/name", ""),
     (ADDRESS + "?library=diffusers#usage", ""), (ADDRESS + "/discussions/3", ""), (ADDRESS + "/tree/fp16", "fp16"),
     (ADDRESS + "/tree/refs%2Fpr%2F1/", "refs/pr/1"), (ADDRESS + "/commit/" + "ab" * 20, "ab" * 20)],
)  # fmt: skip
def test_pages_of_models_are_their_ids(source, revision):
    assert sources.of_page(source, sources.MODEL, "") == ("owner/name", revision)
    page = source.replace(".co/", ".co/datasets/", 1)
    if page != source:
        assert sources.of_page(page, sources.DATASET, "") == ("owner/name", revision)


@pytest.mark.parametrize("source", ["", "photos", "photos/", "/a/b/", "a/b/c/", "~/models/sd15/", "embedded", "..",
                                    "https://civitai.com/models/1", "https://x.org/huggingface.co/a/b"])  # fmt: skip
def test_what_is_no_page_stays(source):
    assert sources.of_page(source, sources.MODEL, "x") == (source, "x")


def test_a_folder_with_a_slash_behind_it_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert sources.of_page("owner/name/", sources.MODEL, "") == ("owner/name/", "")


@pytest.mark.parametrize(
    ("source", "revision", "said"),
    [("https://huggingface.co/datasets/a/b", "", " is the page of a dataset; give a model, by its page or as"),
     ("https://huggingface.co/spaces/a/b", "", " is the page of a space; give a model, by its page or as owner/name"),
     ("https://huggingface.co/gpt2", "", " is not the page of one model; give its id, owner/name"),
     ("https://huggingface.co/", "", " is not the page of one model; give its id, owner/name"),
     (ADDRESS + "/blob/main/v1-5.safetensors", "", " is a part of owner/name; give that id, or download the part and"),
     (ADDRESS + "/resolve/main/x.safetensors?download=true", "", " is a part of owner/name; give that id, or"),
     (ADDRESS + "/tree/main/unet", "", " is a part of owner/name; give that id, or download the part and give"),
     (ADDRESS + "/tree/fp16", "main", " is of another revision than model.revision=main; give one of them"),
     (ADDRESS + "/tree/fp16", None, " names a revision, which cannot be chosen here; give owner/name")],
)  # fmt: skip
def test_pages_of_something_else(source, revision, said):
    assert refusal(sources.of_page, source, sources.MODEL, revision).startswith(f"model.source={source}{said}")


def test_pages_in_configs(hub, repository, tiny_config):
    config = tiny_config
    config.model.source, config.instance.images = f"{ADDRESS}/tree/fp16", "https://huggingface.co/datasets/a/b/"
    config.model.config = ADDRESS
    config.concepts = ({"instance.images": "https://hf.co/datasets/c/d/tree/v2", "instance.prompt": "a"},)
    got = resolved(config)
    assert (got.model.source, got.model.revision, got.model.config) == ("owner/name", "fp16", "owner/name")
    assert (got.instance.images, got.instance.revision) == ("a/b", "")
    assert got.concepts == ({"instance.images": "c/d", "instance.prompt": "a", "instance.revision": "v2"},)
    assert resolved(got) == got
    config.model.config = f"{ADDRESS}/tree/x"
    assert refusal(resolved, config).startswith(
        f"model.config={ADDRESS}/tree/x names a revision, which cannot be chosen"
    )
    pipeline = open_pipeline(f"https://huggingface.co/{ID}/tree/{repository}")
    assert (pipeline.model.source, pipeline.model.commit) == (ID, repository)


def test_a_folder_that_is_there_is_no_id(hub, repository, tiny_pipeline, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_config.model.source = ID
    assert resolved(tiny_config).model.source == ID
    shutil.copytree(tiny_pipeline, tmp_path / ID)
    assert resolved(tiny_config).model.source == str(tmp_path / ID)
    assert open_pipeline(ID).model is None and not hub.requests
    assert refusal(open_pipeline, ID, "", "main") == (
        "model.revision='main' is for hub ids, and model.source=owner/tiny is a local folder; leave it empty"
    )


def test_a_folder_needs_no_hub_library():
    code = "import booth.models.pipeline, booth.config.values, sys; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_only_what_the_pipeline_is_made_of_is_fetched(hub, repository, tiny, tiny_pipeline, tmp_path):
    pipeline = open_pipeline(ID)
    assert sorted(hub.downloads()) == sorted(tiny.keys() - WEIGHTS), "configs and vocabularies first"
    assert set(pipeline.to_download) == WEIGHTS
    assert same_tensors(pipeline, tiny_pipeline)
    assert sorted(hub.downloads()) == sorted(WEIGHTS), "each once"
    assert pipeline.path == tmp_path / "cache" / "models--owner--tiny" / "snapshots" / repository
    assert set(files_of(pipeline.path)) == set(tiny)
    assert (pipeline.model.id, pipeline.model.commit, pipeline.to_download) == (ID, repository, [])


def test_a_variant(hub, tiny):
    """Its weights and no others; a component that has none in it comes with the plain ones."""
    half = {name.replace(".safetensors", ".fp16.safetensors"): tiny[name] for name in WEIGHTS}
    checker = {"safety_checker/config.json": b"{}", "safety_checker/model.safetensors": b"plain"}
    classes = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    hub.push(ID, with_components({**tiny, **half, **checker}, **classes))
    pipeline = open_pipeline(ID, "fp16")
    hub.downloads()
    assert pipeline.weights
    assert sorted(hub.downloads()) == sorted([*half, "safety_checker/model.safetensors"])
    said = refusal(open_pipeline, ID, "bf16")
    assert said.startswith("model.source=owner/tiny: unet/ has no diffusion_pytorch_model.bf16.safetensors but ")
    assert hub.downloads() == []


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards(hub, tiny, tiny_pipeline, tmp_path, variant):
    from safetensors.numpy import load_file, save_file

    tensors, suffix = load_file(tiny_pipeline / UNET), f".{variant}" if variant else ""
    shards, weight_map = {}, {}
    for number in (1, 2):
        part = {name: tensors[name] for name in sorted(tensors)[number - 1 :: 2]}
        file = f"diffusion_pytorch_model{suffix}-0000{number}-of-00002.safetensors"
        save_file(part, tmp_path / "shard", metadata={"format": "pt"})
        shards[f"unet/{file}"] = (tmp_path / "shard").read_bytes()
        weight_map |= dict.fromkeys(part, file)
    index = {f"unet/diffusion_pytorch_model.safetensors.index{suffix}.json": json.dumps({"weight_map": weight_map})}
    others = {name.replace(".safetensors", f"{suffix}.safetensors"): tiny[name] for name in (VAE, TEXT)}
    kept = {name: content for name, content in tiny.items() if name not in WEIGHTS}
    hub.push(ID, {**kept, **others, **shards, **{name: text.encode() for name, text in index.items()}})
    assert same_tensors(open_pipeline(ID, variant), tiny_pipeline)
    assert set(shards) | set(index) <= set(hub.downloads())


def test_another_family_is_refused_before_its_weights_are_fetched(hub, tiny):
    hub.push(ID, with_components(tiny, _class_name="StableDiffusionXLPipeline"))
    assert "owner/tiny: StableDiffusionXLPipeline is not supported yet" in refusal(open_pipeline, ID)
    assert not WEIGHTS & set(hub.downloads())


def test_pickles_are_refused_and_never_fetched(hub, tiny):
    files = {name.replace(".safetensors", ".bin") if name == UNET else name: tiny[name] for name in tiny}
    hub.push(ID, files)
    said = refusal(open_pipeline, ID)
    assert said.startswith("model.source=owner/tiny: unet/ has no diffusion_pytorch_model.safetensors, only PyTorch")
    assert not {UNET.replace("safetensors", "bin"), *WEIGHTS} & set(hub.downloads())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_export_copies_the_components_beside_and_says_where_the_model_is_from(hub, tiny, tmp_path, kind):
    checker = {"safety_checker/config.json": b"{}", f"safety_checker/model.{kind}": b"checker"}
    classes = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
               "feature_extractor": ["transformers", "CLIPImageProcessor"]}  # fmt: skip
    extractor = {"feature_extractor/preprocessor_config.json": b"{}"}
    commit = hub.push(ID, with_components({**tiny, **checker, **extractor}, **classes))
    export(open_pipeline(ID), tmp_path / "out", ())
    out = files_of(tmp_path / "out")
    assert out["feature_extractor/preprocessor_config.json"] == b"{}" and out[UNET] == tiny[UNET]
    index = json.loads(out["model_index.json"])
    if kind == "safetensors":
        assert out["safety_checker/model.safetensors"] == b"checker" and index["safety_checker"][0]
    else:  # it is optional, and half of it would not load
        assert not (tmp_path / "out" / "safety_checker").exists() and index["safety_checker"] == [None, None]
    source = json.loads(out["export.json"])["source"]
    assert (source["hub_id"], source["commit"]) == (ID, commit)


def test_export_takes_only_the_pipelines_files_from_a_cache_that_others_use_too(hub, tiny, tmp_path, monkeypatch):
    others = {"safety_checker/pytorch_model.bin": b"pickle", "vae/diffusion_pytorch_model.fp16.safetensors": b"half",
              "scheduler/notes.bin": b"pickle", "safety_checker/config.json": b"{}"}  # fmt: skip
    classes = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    hub.push(ID, with_components({**tiny, **others}, **classes))
    path = open_pipeline(ID).path
    for name, content in others.items():  # as another program leaves them
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)
    assert open_pipeline(ID).weights
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        export(open_pipeline(ID), tmp_path / f"out-{offline}", ())
        out = files_of(tmp_path / f"out-{offline}")
        assert not out.keys() & others.keys() and out[UNET] == tiny[UNET]
        assert json.loads(out["model_index.json"])["safety_checker"] == [None, None]


def test_what_is_in_the_cache_is_not_fetched_again_and_serves_offline(hub, repository, tiny_pipeline, monkeypatch):
    assert open_pipeline(ID).weights and hub.downloads()
    assert open_pipeline(ID).to_download == [] and hub.downloads() == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same_tensors(open_pipeline(ID), tiny_pipeline)
    assert open_pipeline(ID, "", repository).model.commit == repository
    assert open_pipeline(ID, "", "main").model.commit == repository


def test_offline_without_a_cache(hub, repository, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = (
        f"model.source=owner/tiny: no such folder here, not in the cache {tmp_path}/cache either, and HF_HUB_OFFLINE"
        " forbids downloading it; unset that"
    )
    assert refusal(open_pipeline, ID) == said and refusal(open_pipeline, ID, "", repository) == said
    assert not hub.requests


def test_offline_with_half_of_it(hub, repository, monkeypatch):
    open_pipeline(ID)  # configs only
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refusal(open_pipeline, ID) == (
        "model.source=owner/tiny: unet/diffusion_pytorch_model.safetensors is not in the cache and the hub cannot be"
        " asked; unset HF_HUB_OFFLINE or fix the network"
    )


def test_a_hub_that_is_down(hub, repository, tiny_pipeline):
    assert open_pipeline(ID).weights
    hub.failing = True
    assert same_tensors(open_pipeline(ID), tiny_pipeline)
    said = refusal(open_pipeline, "owner/other")
    assert (
        said.startswith("model.source=owner/other: no such folder here, and the hub does not deliver it (")
        and "503" in said
    )


def test_no_network(hub, repository, tiny_pipeline, monkeypatch):
    assert open_pipeline(ID).weights
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert same_tensors(open_pipeline(ID), tiny_pipeline)
    said = refusal(open_pipeline, "owner/other")
    assert said.startswith("model.source=owner/other: no such folder here, and the hub does not deliver it (")
    assert said.endswith("; fix that or wait, then the same command continues")


def test_a_moved_model_is_taken_from_where_it_is(hub, tiny, caplog):
    commit = hub.push("stable-diffusion-v1-5/stable-diffusion-v1-5", tiny)
    model = open_pipeline("runwayml/stable-diffusion-v1-5").model
    assert (model.id, model.commit) == ("stable-diffusion-v1-5/stable-diffusion-v1-5", commit)
    assert (
        "runwayml/stable-diffusion-v1-5 was removed by its owner: taking the copy stable-diffusion-v1-5/" in caplog.text
    )
    assert not set(hub_module.MOVED) & set(hub_module.MOVED.values())


def test_a_revision(hub, repository, tiny):
    other = hub.push(ID, {**tiny, "scheduler/scheduler_config.json": b'{"steps_offset": 7}'}, "refs/pr/1")
    assert open_pipeline(ID).model.commit == repository
    for revision in ("refs/pr/1", other):
        pipeline = open_pipeline(ID, "", revision)
        assert pipeline.model.commit == other and pipeline.component_config("scheduler") == {"steps_offset": 7}


PAGE = "https://huggingface.co/owner/tiny"


@pytest.mark.parametrize(
    ("token", "said"),
    [("", f"model.source=owner/tiny is gated: accept its licence on {PAGE}, then give your token with HF_TOKEN"),
     ("no access", f"your token's account has no access yet; ask for it or accept the licence on {PAGE}"),
     ("unknown", "model.source=owner/tiny: the hub does not know your token; give another one with HF_TOKEN or `hf"),
     ("narrow", "the hub refuses it to your token (403 Forbidden: Enable access to gated repositories); give another"),
     ("access", None)],
)  # fmt: skip
def test_a_gated_model(hub, repository, monkeypatch, token, said):
    hub.gated, hub.tokens = {ID}, {"no access": False, "narrow": True, "access": True}
    hub.forbidden = {"narrow"}
    monkeypatch.setenv("HF_TOKEN", token)
    if said:
        assert said in refusal(open_pipeline, ID) and hub.downloads() == []
    else:
        assert open_pipeline(ID).weights


@pytest.mark.parametrize("token", ["", "known"])
def test_no_such_model(hub, monkeypatch, token):
    hub.tokens = {"known": True}
    monkeypatch.setenv("HF_TOKEN", token)
    assert refusal(open_pipeline, "models/sd15") == (
        "model.source=models/sd15: no such folder here and no such model on the hub; correct it,"
        " or if the model is private give your token with HF_TOKEN or `hf auth login`"
    )


@pytest.mark.parametrize("source", ["owner/a--b", "owner/" + "a" * 100])
def test_no_possible_model(hub, source):
    assert "no such folder here and no such model on the hub" in refusal(open_pipeline, source)


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_no_such_revision(hub, repository, revision):
    assert refusal(open_pipeline, ID, "", revision) == (
        f"model.revision='{revision}' is no branch, tag or commit of owner/tiny;"
        " https://huggingface.co/owner/tiny/commits lists them"
    )


def test_no_pipeline(hub):
    hub.push(ID, {"config.json": b"{}", "model.safetensors": b""})
    assert refusal(open_pipeline, ID) == (
        "model.source=owner/tiny: no model_index.json in it on the hub; give a diffusers pipeline"
    )


def test_a_download_that_breaks_off_goes_on_at_the_byte(hub, repository, tiny_pipeline, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    pipeline = open_pipeline(ID)
    hub.cut[UNET] = 5_000_500
    assert same_tensors(pipeline, tiny_pipeline)
    assert hub.ranges == ["bytes=5000000-"]


def test_an_interrupted_download_goes_on_with_the_missing_files(hub, repository, tiny_pipeline, monkeypatch):
    import huggingface_hub

    def interrupted(name, file, **options):
        if file == UNET:
            raise KeyboardInterrupt
        return download(name, file, **options)

    download = huggingface_hub.hf_hub_download
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(huggingface_hub, "hf_hub_download", interrupted)
        _ = open_pipeline(ID).weights
    done = WEIGHTS & set(hub.downloads())
    assert done == {TEXT}
    assert same_tensors(open_pipeline(ID), tiny_pipeline)
    assert set(hub.downloads()) == WEIGHTS - done


def test_no_room(hub, repository, monkeypatch, tmp_path):
    pipeline = open_pipeline(ID)
    hub.downloads()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    said = refusal(lambda: pipeline.weights)
    assert said.startswith("model.source=owner/tiny is 17.3 MB more, and ") and "has 1.0 MB of space; make room" in said
    assert hub.downloads() == []


def test_a_disk_that_is_full_all_the_same(hub, repository, monkeypatch):
    pipeline = open_pipeline(ID)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    said = refusal(lambda: pipeline.weights)
    assert said.startswith("model.source=owner/tiny cannot be downloaded to ") and "No space left on device" in said


@pytest.fixture
def config(tiny_config):
    tiny_config.model.source = ID
    return tiny_config


def origin(run):
    return json.loads((run / "manifest.json").read_text())["model from the hub"]


def test_a_run_keeps_its_commit_when_the_branch_moves(hub, repository, config, tiny, tmp_path):
    config.train.steps = 2
    loop.train(FakeBackend, config, tmp_path / "run")
    assert origin(tmp_path / "run") == {"source": ID, "revision": "", "id": ID, "commit": repository}
    changed = tiny[UNET][:-4] + b"\0\0\0\0"
    moved = hub.push(ID, {**tiny, UNET: changed})
    config.train.steps = 4
    run = loop.train(FakeBackend, config, tmp_path / "run")
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4] and origin(run.path)["commit"] == repository
    assert json.loads((run.pipeline / "export.json").read_text())["source"]["commit"] == repository
    # Another revision is another model, and a new run gets the newest.
    config.model.revision = "main"
    assert "model weights changed since this run began (unet)" in refusal(loop.train, FakeBackend, config, run.path)
    assert origin(run.path)["commit"] == repository
    assert origin(loop.train(FakeBackend, config, tmp_path / "new").path)["commit"] == moved


def test_a_run_goes_on_after_its_model_was_removed_from_the_hub(hub, repository, config, tmp_path):
    config.train.steps = 2
    loop.train(FakeBackend, config, tmp_path / "run")
    hub.revisions.clear()
    config.train.steps = 3
    assert len(loop.train(FakeBackend, config, tmp_path / "run").metrics) == 3


def test_a_run_from_the_hub_goes_on_with_a_local_copy(hub, repository, config, tiny_pipeline, tmp_path):
    config.train.steps = 2
    loop.train(FakeBackend, config, tmp_path / "run")
    config.model.source, config.train.steps = str(tiny_pipeline), 3
    run = loop.train(FakeBackend, config, tmp_path / "run")
    assert len(run.metrics) == 3 and origin(run.path) == {}


def test_photos_are_looked_at_before_weights_are_fetched(hub, repository, config, tmp_path):
    config.instance.images = "/nowhere"
    assert "instance.images='/nowhere' is not a folder" in refusal(loop.train, FakeBackend, config, tmp_path / "run")
    assert not WEIGHTS & set(hub.downloads()) and not (tmp_path / "run").exists()


def flip_a_byte(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.resolve().write_bytes(content)


@pytest.fixture
def downloaded(hub, repository):
    """The pipeline with everything in the cache."""
    pipeline = open_pipeline(ID)
    assert pipeline.weights
    hub.downloads()
    return pipeline


@pytest.mark.parametrize("offline", [False, True])
def test_verify(downloaded, hub, tiny, tiny_pipeline, tmp_path, monkeypatch, caplog, offline):
    caplog.set_level("INFO", "booth")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    open_pipeline(ID).verify()
    assert caplog.messages[-1] == f"{ID} at {downloaded.model.commit[:12]}: {len(tiny)} files verified"
    config = "unet/config.json"
    damaged = {UNET: -1, "tokenizer/merges.txt": 40, config: tiny[config].index(b"_diffusers_version")}
    for name, place in damaged.items():
        flip_a_byte(downloaded.path / name, place)
    said = refusal(open_pipeline(ID).verify)
    blobs = re.findall(r"(\S+) in (\S+?)[,;]", said)
    assert {name for name, _ in blobs} == damaged.keys() and said.startswith("model.source=owner/tiny: not what was")
    assert {Path(path) for _, path in blobs} == {(downloaded.path / name).resolve() for name in damaged}
    assert hub.downloads() == []
    # As it says: what is deleted there is downloaded again, and nothing else.
    for _, path in blobs:
        Path(path).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    mended = open_pipeline(ID)
    assert same_tensors(mended, tiny_pipeline) and sorted(hub.downloads()) == sorted(damaged)
    mended.verify()


@pytest.mark.parametrize("name", ["model_index.json", TEXT, "tokenizer/vocab.json"])
def test_verify_notices_every_byte(downloaded, tiny, name):
    for place in (0, len(tiny[name]) // 2, -1):
        flip_a_byte(downloaded.path / name, place)
        assert f" {name} in " in refusal(downloaded.verify)
        flip_a_byte(downloaded.path / name, place)
    (downloaded.path / name).resolve().write_bytes(tiny[name][:-1])
    assert f" {name} in " in refusal(downloaded.verify)


def test_verify_where_the_cache_has_no_links(downloaded, hub, tiny, monkeypatch, caplog):
    """As on Windows: then only the hub knows the hashes."""
    for name, content in tiny.items():
        (downloaded.path / name).unlink()
        (downloaded.path / name).write_bytes(content)
    open_pipeline(ID).verify()
    for name in (UNET, "unet/config.json"):
        flip_a_byte(downloaded.path / name)
        assert f" {name} in {downloaded.path / name};" in refusal(downloaded.verify)
        (downloaded.path / name).write_bytes(tiny[name])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    open_pipeline(ID).verify()
    (said,) = [record.getMessage() for record in caplog.records
               if (record.name, record.levelname) == ("booth", "WARNING")]  # fmt: skip
    assert said.startswith("model.source=owner/tiny: no hash is known to verify model_index.json, ") and UNET in said


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", UNET])
def test_what_cannot_be_read_any_more_is_named_as_the_cache_names_it(downloaded, hub, tiny_pipeline, name):
    blob = (downloaded.path / name).resolve()
    flip_a_byte(blob, 8)
    flip_a_byte(blob, 0)
    said = refusal(open_pipeline, ID)
    assert str(downloaded.path / name) in said and said.endswith(f"; delete {blob}, then it is downloaded again")
    blob.unlink()
    assert same_tensors(open_pipeline(ID), tiny_pipeline) and hub.downloads() == [name]


def test_verify_of_what_is_not_downloaded_yet(hub, repository):
    pipeline = open_pipeline(ID)
    hub.downloads()
    pipeline.verify()
    assert hub.downloads() == [] and set(pipeline.to_download) == WEIGHTS


def test_verify_of_a_folder(tiny_pipeline, caplog):
    caplog.set_level("INFO", "booth")
    open_pipeline(tiny_pipeline).verify()
    (message,) = caplog.messages
    assert message == f"{tiny_pipeline} is a local folder: only the manifest of a run knows what was in its files"
