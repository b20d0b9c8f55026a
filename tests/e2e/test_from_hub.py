"""The command line with a model from the hub: a server on this machine plays the hub."""

import json
import signal
import subprocess
import sys
import threading

import pytest
from hub_server import files_of
from waiting import PATIENCE_S

ID = "owner/tiny"
UNET, VAE = (f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def tiny(tiny_pipeline):
    return files_of(tiny_pipeline)


@pytest.fixture
def commit(hub, tiny):
    return hub.push(ID, tiny)


@pytest.mark.full
def test_train_sample_and_export(hub, hub_env, commit, tiny, job, run, main, environment, tmp_path):
    env = environment() | hub_env
    arguments = job("run", model__source=ID, train__steps=2, prior__weight=0)
    done = run("torchbooth.train", *arguments, env=env)
    assert done.returncode == 0, done.stderr
    assert f"{ID} at {commit[:12]}: downloading 3 files, 17.3 MB" in done.stderr
    assert sorted(hub.downloads()) == sorted(tiny)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["model from the hub"] == {"source": ID, "revision": "", "id": ID, "commit": commit}
    # The branch moves on, and the run goes on with what it began with, without the network too.
    hub.push(ID, {**tiny, UNET: tiny[UNET][:-4] + b"\0\0\0\0"})
    arguments = job("run", model__source=ID, train__steps=3, prior__weight=0)
    done = run("torchbooth.train", *arguments, env=env | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0 and "resumed from step 2" in done.stderr, done.stderr
    picture = ("--prompt", "a photo of robot", "--steps", 1, "--size", 64)
    exported = main("torchbooth", "export", "--run", tmp_path / "run", "--out", tmp_path / "out")
    assert exported.code == 0, exported.err
    source = json.loads((tmp_path / "out" / "export.json").read_text())["source"]
    assert (source["hub_id"], source["commit"]) == (ID, commit)
    sampled = main("torchbooth", "sample", "--run", tmp_path / "run", "--out", tmp_path / "by run", *picture)
    assert sampled.code == 0, sampled.err
    assert hub.downloads() == []
    both = [main("torchbooth", "sample", "--model", ID, "--out", tmp_path / f"by id {revision}", *picture,
                 *(["--revision", revision] if revision else [])) for revision in (commit, "")]  # fmt: skip
    assert [outcome.code for outcome in both] == [0, 0], both
    assert UNET in hub.downloads(), "the newest commit"
    first, second = ((tmp_path / f"by id {name}" / "grid.png").read_bytes() for name in (commit, ""))
    assert first != second


def test_a_flipped_byte_in_the_cache_is_noticed_by_verify(hub, commit, job, main, tmp_path):
    picture = ["sample", "--model", ID, "--prompt", "a robot", "--steps", 1, "--size", 64, "--out", tmp_path / "out"]
    assert main("torchbooth", *picture, "--verify").code == 0
    (weights,) = (tmp_path / "cache").glob(f"models--owner--tiny/snapshots/*/{VAE}")
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.resolve().write_bytes(content)
    assert main("torchbooth", *picture).code == 0, "the file can be read"
    for command in (picture, ["train", *job(tmp_path / "run", model__source=ID)]):
        outcome = main("torchbooth", *command, "--verify")
        assert outcome.code == 2 and "not what was downloaded any more" in outcome.err and VAE in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_downloads_no_weights(hub, commit, job, main, tmp_path):
    outcome = main("torchbooth", "train", *job(tmp_path / "run", model__source=ID), "--dry-run")
    assert outcome.code == 0 and json.loads(outcome.out)["model"]["source"] == ID
    assert outcome.err.splitlines()[-1] == "a run would download 3 files, 17.3 MB"
    assert "unet/config.json" in (asked := hub.downloads()) and not {UNET, VAE, TEXT} & set(asked)
    bad = main("torchbooth", "train", *job(tmp_path / "run", model__source=ID, data__resolution=60), "--dry-run")
    assert bad.code == 2 and "image size 60x60 must be a multiple of 8" in bad.err
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_ctrl_c_while_downloading(hub, hub_env, commit, job, environment, tmp_path):
    """What is complete is kept, what is not is fetched again."""
    hub.stall[UNET] = threading.Event()
    command = [sys.executable, "-m", "torchbooth.train", *job("run", model__source=ID, prior__weight=0, train__steps=1)]
    env = environment() | hub_env
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert hub.stalled.wait(120)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        hub.stall.pop(UNET).set()
    assert process.returncode == 130 and "Traceback" not in said, said
    assert (
        said.splitlines()[-1]
        == "torchbooth: interrupted; the same command continues, training from its last checkpoint"
    )
    assert {TEXT, UNET} <= set(hub.downloads())
    assert not list(tmp_path.rglob("*.incomplete"))
    again = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert sorted(hub.downloads()) == [UNET, VAE]


def test_refusals(hub, hub_env, commit, job, run, main, environment, tmp_path):
    done = run("torchbooth.train", *job("run", model__source="owner/typo"), env=environment() | hub_env)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "run").exists()
    said = "torchbooth: error: model.source=owner/typo: no such folder here and no such model on the hub"
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
    outcome = main("torchbooth", "train", *job(tmp_path / "run", model__source=ID, model__revision="v2"))
    assert outcome.code == 2 and "model.revision='v2' is no branch, tag or commit of owner/tiny" in outcome.err


def test_options_of_sample(hub, job, main, tmp_path):
    arguments = ("--prompt", "a", "--out", tmp_path / "out")
    outcome = main("torchbooth", "sample", "--run", tmp_path, "--revision", "main", *arguments)
    assert outcome.code == 2 and "--revision belongs to --model; with --run leave it out" in outcome.err
    outcome = main("torchbooth", "sample", "--model", tmp_path, "--revision", "main", *arguments)
    assert outcome.code == 2 and "is a local folder; leave it empty" in outcome.err
    outcome = main("torchbooth", "sample", "--model", "owner/typo", *arguments)
    assert outcome.code == 2 and "no such model on the hub" in outcome.err and not (tmp_path / "out").exists()
