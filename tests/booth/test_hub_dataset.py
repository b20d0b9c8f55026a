"""Datasets from the hub, against a server on this machine: what is fetched, what is remembered, what is said."""

import io
import json

import pytest
from fake_backend import FakeBackend
from hub_server import files_of
from huggingface_hub import constants, hf_hub_download
from PIL import Image

from booth.common.errors import UserError
from booth.config.values import resolved
from booth.data.image_dataset import open_photos
from booth.data.image_folder import find_images
from booth.data.images import instance_examples
from booth.train import loop

ID = "owner/robots"
REPOSITORY = f"datasets/{ID}"
SHARDS = [f"data/train-{number:05d}-of-00002.parquet" for number in range(2)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "booth" / "datasets"


@pytest.fixture(scope="module")
def pictures(photos):
    return [path.read_bytes() for path in find_images(photos, "instance.images")]


@pytest.fixture(scope="module")
def shards(pictures):
    """A repository as `push_to_hub` lays it out, with what else there may be."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "text": Value("string")})
    files = {"README.md": b"# Robots", "robots.py": b"import os; os.abort()", "robots.pkl": b"evil"}
    for name, chosen in zip([*SHARDS, "data/test-00000-of-00001.parquet"], ((0, 2), (2, 5), (0, 1)), strict=True):
        rows = {"image": [{"bytes": picture, "path": None} for picture in pictures[slice(*chosen)]],
                "text": [f"robot {number}" for number in range(*chosen)]}  # fmt: skip
        buffer = io.BytesIO()
        Dataset.from_dict(rows, features).to_parquet(buffer)
        files[name] = buffer.getvalue()
    return files


@pytest.fixture
def commit(hub, shards):
    return hub.push(REPOSITORY, shards)


def refusal(source=ID, revision=""):
    with pytest.raises(UserError) as caught:
        open_photos(source, "image", revision=revision)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_data_is_fetched_and_nothing_else(hub, commit, pictures, tmp_path):
    photos = open_photos(ID, "image", "metadata")
    assert sorted(hub.downloads()) == ["README.md", "data/test-00000-of-00001.parquet", *SHARDS]
    assert photos.origin == {"id": ID, "commit": commit}
    assert [path.read_bytes() for path in find_images(photos.folder, "")] == pictures
    assert (tmp_path / "cache" / "datasets--owner--robots" / "snapshots" / commit / SHARDS[0]).is_file()
    assert open_photos(ID, "image").folder == photos.folder and hub.downloads() == []


@pytest.mark.parametrize("root", ["", "train/"])
def test_a_repository_of_images(hub, photos, root):
    files = {root + name: content for name, content in files_of(photos).items() if name.endswith(".png")}
    names = [name.removeprefix(root) for name in files]
    table = "".join(json.dumps({"file_name": name, "text": f"robot {name}"}) + "\n" for name in names).encode()
    files[root + "metadata.jsonl"] = table
    hub.push(REPOSITORY, {**files, "evil.py": b"", "evil.pkl": b""})
    found = open_photos(ID, "image", "metadata")
    assert set(hub.downloads()) == set(files)
    examples = instance_examples(str(found.folder), "", "metadata")
    captions = {example.caption: example.path.read_bytes() for example in examples}
    assert captions == {f"robot {name}": files[root + name] for name in names}


def test_a_repository_of_a_saved_dataset(hub, shards, pictures, tmp_path):
    from datasets import Dataset

    (tmp_path / "a.parquet").write_bytes(shards[SHARDS[0]])
    Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "hf")).save_to_disk(tmp_path / "saved")
    hub.push(REPOSITORY, files_of(tmp_path / "saved"))
    assert [path.read_bytes() for path in find_images(open_photos(ID, "image").folder, "")] == pictures[:2]


def test_no_images(hub):
    hub.push(REPOSITORY, {"README.md": b"", "train.tar": b"", "robots.py": b""})
    assert "`datasets` cannot read it (" in refusal()


@pytest.mark.parametrize("name", ["../../evil.png", "/evil.png", "a/../../evil.png"])
def test_names_that_lead_elsewhere_lead_nowhere(hub, shards, tmp_path, name):
    hub.push(REPOSITORY, {name: b"evil", **shards})
    try:
        open_photos(ID, "image")
    except UserError as error:
        assert "\n" not in str(error)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"evil"]


def test_offline_the_cache_serves_if_it_has_all(hub, commit, monkeypatch):
    hf_hub_download(ID, SHARDS[0], repo_type="dataset", revision=commit)  # as another program left it
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids downloading it"):
        open_photos(ID, "image")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = open_photos(ID, "image").folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_photos(ID, "image").folder == open_photos(ID, "image", revision=commit).folder == folder
    hub.failing = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert open_photos(ID, "image").folder == folder


def test_refusals(hub, commit, monkeypatch):
    assert refusal("owner/typo") == (
        "instance.images=owner/typo: no such folder here and no such dataset on the hub; correct it, or if the dataset"
        " is private give your token with HF_TOKEN or `hf auth login`"
    )
    assert refusal(revision="v2") == (
        "instance.revision='v2' is no branch, tag or commit of owner/robots;"
        " https://huggingface.co/datasets/owner/robots/commits lists them"
    )
    assert (
        refusal(revision="../evil") == "instance.revision='../evil' is no name of a branch, tag or commit; correct it"
    )
    hub.gated = {REPOSITORY}
    assert refusal().startswith(
        "instance.images=owner/robots is gated: accept its licence on https://huggingface.co/datasets/owner/robots"
    )
    monkeypatch.setenv("HF_TOKEN", "unknown")
    assert "the hub does not know your token; give another one" in refusal()


@pytest.fixture
def config(tiny_config):
    tiny_config.instance.images, tiny_config.prior.weight = ID, 0.0
    return tiny_config


def test_a_run_keeps_its_commit_when_the_branch_moves(hub, commit, shards, config, tmp_path):
    assert resolved(config).instance.images == ID
    config.train.steps = 2
    run = loop.train(FakeBackend, config, tmp_path / "run")
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["images from the hub"] == {"source": ID, "revision": "", "id": ID, "commit": commit}
    assert list(manifest["instance images"]) == [f"{number:05d}.png" for number in range(5)]
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, format="PNG")
    other = hub.push(REPOSITORY, {"1.png": picture.getvalue()})
    config.train.steps = 3
    assert len(loop.train(FakeBackend, config, tmp_path / "run").metrics) == 3
    config.instance.revision, config.train.steps = other, 4
    with pytest.raises(UserError, match="instance images changed since this run began"):
        loop.train(FakeBackend, config, tmp_path / "run")
