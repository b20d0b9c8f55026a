"""Pushing runs to the hub, by the real client against a server on this machine: what goes, what never does, what is
said."""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_backend import FakeBackend
from hub_server import files_of
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.numpy import save_file
from waiting import PATIENCE_S

from booth.commands import push
from booth.commands.cli import main
from booth.commands.push import Destination
from booth.common.errors import UserError
from booth.models import adapters, lora_file
from booth.models.export_folder import RECORD
from booth.models.open import open_pipeline
from booth.report.data import gather
from booth.report.model_card import Shown, card
from booth.train import loop

ROOT = Path(__file__).parents[2]
ID = "owner/robot"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def account(hub, monkeypatch):
    """A token that may write to owner/."""
    token = hub.account("secret", orgs=["lab"])
    monkeypatch.setenv("HF_TOKEN", token)
    return token


def edited(run, **fields):
    """Other settings in a run's record, and where people read them."""
    for name in ("manifest.json", "config.json"):
        record = json.loads((run / name).read_text())
        record["config"] |= {name.replace("__", "."): value for name, value in fields.items()}
        (run / name).write_text(json.dumps(record))
    return run


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command(*arguments):
    return main("torchbooth", ["push", *map(str, arguments)])


def said(capsys):
    """The last line."""
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_pipeline(hub, account, run, capsys):
    assert command("--run", run, "--to", ID) == 0
    files, local = hub.files(ID), files_of(run / "pipeline")
    assert set(files) == local.keys() - {RECORD} | {".gitattributes", "README.md", "images/step-000004.png"}
    assert all(files[name] == local[name] for name in local if name != RECORD)
    assert files["images/step-000004.png"] == (run / "samples" / "step-000004.png").read_bytes()
    assert hub.private == {ID} and capsys.readouterr().out == f"{hub.url}/{ID}\n"


def test_nothing_of_this_machine_is_pushed(hub, account, run, finished, photos, tiny_pipeline):
    """Neither paths nor photos; the record of an export, and before and after, have some."""
    assert str(tiny_pipeline) in (run / "pipeline" / RECORD).read_text()
    (run / "pipeline" / ".hidden").write_text("x")
    (run / "pipeline" / "link.json").symlink_to(ROOT / "LICENSE")
    Destination(ID).push(run)
    files = hub.files(ID)
    assert not {RECORD, ".hidden", "link.json", "images/before_after.png"} & set(files)
    for path in (str(tiny_pipeline), str(photos), str(run), str(finished), str(Path.home())):
        assert not [name for name, content in files.items() if path.encode() in content], path


def test_photos_where_asked_for(hub, account, run, photos, tmp_path):
    """Pixels alone: what a camera wrote into them is gone. Without the option the next push takes them away again."""
    taken = shutil.copytree(photos, tmp_path / "taken")
    exif = Image.Exif()
    exif[0x010E] = "at home"
    name = sorted(path.name for path in taken.iterdir())[0]
    with Image.open(taken / name) as image:
        image.convert("RGB").save(taken / name, format="JPEG", exif=exif, comment=b"of my house")
    edited(run, instance__images=str(taken))
    Destination(ID, with_photos=True).push(run)
    files = hub.files(ID)
    pushed = sorted(name for name in files if name.startswith("photos/"))
    assert pushed == [f"photos/{number:02d}.jpg" for number in range(1, 6)]
    assert "images/before_after.png" in files and b"photos/05.jpg" in files["README.md"]
    assert not [file for file in pushed if b"at home" in files[file] or b"of my house" in files[file]]
    shown = np.asarray(Image.open(io.BytesIO(files[pushed[0]])), np.float32)
    assert np.abs(shown - np.asarray(Image.open(taken / name).convert("RGB"), np.float32)).mean() < 12
    Destination(ID).push(run)
    assert not [file for file in hub.files(ID) if file.startswith("photos/") or "before_after" in file]


def test_a_push_that_broke_off_goes_on(hub, account, run):
    """Nothing is to be seen of the first; the second sends what is missing; a third has nothing to do."""
    sums = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run / "pipeline").rglob("*.safetensors")}
    hub.refused[sums[run / "pipeline" / UNET]] = (403, "Request has expired")
    assert "(Request has expired)" in refusal(Destination(ID).push, run)
    assert set(hub.files(ID)) == {".gitattributes"}
    first, hub.uploads[:] = set(hub.uploads), []
    hub.refused.clear()
    Destination(ID).push(run)
    assert first and set(hub.uploads) == set(sums.values()) - first and UNET in hub.files(ID)
    commit, hub.uploads[:] = hub.revisions[ID]["main"], []
    Destination(ID).push(run)
    assert hub.revisions[ID]["main"] == commit and hub.uploads == []


def test_ctrl_c_while_uploading(hub, hub_env, account, run):
    sha256 = hashlib.sha256((run / "pipeline" / UNET).read_bytes()).hexdigest()
    hub.stall[sha256] = threading.Event()
    arguments = [sys.executable, "-m", "torchbooth", "push", "--run", str(run), "--to", ID]
    env = os.environ | hub_env | {"PYTHONPATH": str(ROOT), "HF_TOKEN": account}
    # Not as a suite in the background has it, which ignores Ctrl-C.
    process = subprocess.Popen(arguments, env=env, stderr=subprocess.PIPE, text=True, cwd=run)
    try:
        assert hub.stalled.wait(60)
        process.send_signal(signal.SIGINT)
        hub.stall.pop(sha256).set()
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err, err
    assert set(hub.files(ID)) == {".gitattributes"}
    again = subprocess.run(arguments, env=env, capture_output=True, text=True, cwd=run)
    assert again.returncode == 0 and UNET in hub.files(ID), again.stderr


def test_other_content_is_not_mixed_with(hub, account, run, finished, tmp_path):
    hub.push(ID, {"README.md": b"# mine", "old.safetensors": b"old", ".gitattributes": b""})
    hub.private.add(ID)
    message = refusal(Destination(ID).push, run)
    assert "other content (1 files)" in message and "--replace" in message
    Destination(ID, replace=True).push(run)
    assert "old.safetensors" not in hub.files(ID) and UNET in hub.files(ID)
    # Of the same run what was put beside it stays; another run is other content again.
    hub.push(ID, {**hub.files(ID), "mine.txt": b"mine"})
    Destination(ID).push(run)
    assert "mine.txt" in hub.files(ID)
    other = shutil.copytree(finished, tmp_path / "other")
    record = json.loads((other / "manifest.json").read_text())
    record["run"]["id"] = "0123"
    (other / "manifest.json").write_text(json.dumps(record))
    assert "other content" in refusal(Destination(ID).push, other)


def test_private_until_it_is_meant_to_be_public(hub, account, run):
    Destination(ID).push(run)
    assert ID in hub.private
    Destination(ID, license="openrail++", public=True).push(run)
    assert ID not in hub.private and b"license: openrail++\n" in hub.files(ID)["README.md"]
    assert "exists and is public; give --public" in refusal(Destination(ID).push, run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "robot"], "'robot' is no name on the hub: it has no owner; give owner/name"),
        (["--to", "own er/robot"], "'own er/robot' is no name on the hub"),
        (["--to", ID, "--license", "my own"], "--license 'my own' must be one of the identifiers"),
        (["--to", ID, "--public"], "--public needs --license"),
        (["--to", "https://huggingface.co/somebody/robot/"], "somebody/robot: your token belongs to owner, who may"),
        (["--to", "https://huggingface.co/datasets/a/b"], "--to=https://huggingface.co/datasets/a/b is the page of a"),
        (["--to", "https://hf.co/a/b/tree/v2"], "--to=https://hf.co/a/b/tree/v2 names a revision, which cannot be"),
        (["--to", "somebody/robot"], "somebody/robot: your token belongs to owner, who may write to owner, lab only"),
    ],
)
def test_refused_before_anything_is_sent(hub, account, run, capsys, options, message):
    assert command("--run", run, *options) == 2
    assert message in said(capsys) and not hub.revisions


def test_an_organisation(hub, account, run):
    assert command("--run", run, "--to", "lab/robot") == 0
    assert UNET in hub.files("lab/robot")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "owner/robot: no token to push with; make one that may write on"),
        ("unknown", "owner/robot: the hub does not know your token; give another one with"),
        ("reader", "owner/robot: your token may only read; make one that may write on"),
        ("narrow", "owner/robot: your token may only read; make one that may write on"),
    ],
)
def test_tokens(hub, run, capsys, monkeypatch, token, message):
    hub.account("reader", role="read")
    scopes = [{"entity": {"type": "user", "name": "owner"}, "permissions": ["repo.content.read"]}]
    hub.account("narrow", role="fineGrained", fineGrained={"scoped": scopes})
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert command("--run", run, "--to", ID) == 2
    assert message in said(capsys) and not hub.revisions
    scopes[0]["permissions"].append("repo.write")
    monkeypatch.setenv("HF_TOKEN", "narrow")
    assert command("--run", run, "--to", ID) == 0


@pytest.mark.parametrize(
    ("where", "status", "message"),
    [
        ("/api/repos/create", 403, "the hub does not let your token do that (because)"),
        ("/preupload/main", 404, "no such owner or model on the hub, or your token may not see it (because)"),
        ("/commit/main", 412, "it changed while it was pushed to (because); give the same command again"),
        ("/commit/main", 409, "it changed while it was pushed to (because); give the same command again"),
        ("/commit/main", 413, "the hub does not take it (because); correct that"),
        ("/commit/main", 500, "the hub cannot be reached or is busy (because); fix that or wait"),
    ],
)
def test_what_the_hub_refuses(hub, account, run, where, status, message):
    hub.refused[where] = (status, "because")
    assert refusal(Destination(ID).push, run).startswith(f"{ID}: {message}")


def test_a_licence_that_the_hub_does_not_know(hub, account, run):
    message = refusal(Destination(ID, license="nonsense").push, run)
    assert '"license" must be one of [apache-2.0, ...]' in message and set(hub.files(ID)) == {".gitattributes"}


def test_no_network(hub, account, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids asking the hub" in refusal(Destination(ID).check)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached or is busy (" in refusal(Destination(ID).check)


def test_a_run_that_is_not_finished(hub, account, run, capsys):
    shutil.rmtree(run / "pipeline")
    assert command("--run", run, "--to", ID) == 2
    assert "is not finished: it has no pipeline/ yet" in said(capsys) and not hub.revisions


def test_training_asks_first_and_pushes_in_the_end(hub, account, run, tiny_config, tmp_path):
    tiny_config.samples.inference_steps = 2
    started = tmp_path / "started"
    message = refusal(loop.train, FakeBackend, tiny_config, started, publisher=Destination("somebody/robot"))
    assert "your token belongs to owner" in message and not started.exists()
    hub.refused["/commit/main"] = (403, "Storage limit reached")
    to = Destination(ID, license="other", public=True)
    message = refusal(loop.train, FakeBackend, tiny_config, started, publisher=to)
    assert message.startswith(f"the run is finished and complete in {started}, but was not pushed: {ID}: ")
    assert "(Storage limit reached)" in message and (started / "pipeline" / RECORD).is_file()
    again = f"numpybooth push --run {started} --to {ID} --license=other --public"
    assert message.endswith(f"; to push it again: {again}")
    hub.refused.clear()
    assert main("torchbooth", again.split()[1:]) == 0
    assert UNET in hub.files(ID) and ID not in hub.private


def test_options_of_train(capsys):
    assert main("torchbooth", ["train", "--config", str(ROOT / "configs/smoke.py"), "--public", "--workdir", "x"]) == 2
    assert "--public belongs to --push-to-hub; give --push-to-hub too, or leave it out" in said(capsys)


def test_a_dry_run_asks_too(hub, account, tiny_pipeline, photos, capsys):
    train = ["train", "--config", str(ROOT / "configs/smoke.py"), f"--config.model.source={tiny_pipeline}",
             f"--config.instance.images={photos}", "--dry-run", "--push-to-hub"]  # fmt: skip
    assert main("torchbooth", [*train, "somebody/robot"]) == 2
    assert "somebody/robot: your token belongs to owner" in said(capsys)
    assert main("torchbooth", [*train, ID]) == 0 and not hub.revisions


def card_of(run, **shown):
    return card(gather(run), Shown(ID, 4, **shown), "0123")


def test_the_card(hub, account, run, tmp_path):
    Destination(ID, license="creativeml-openrail-m").push(run)
    (tmp_path / "README.md").write_bytes(hub.files(ID)["README.md"])
    model_card = ModelCard.load(tmp_path / "README.md")
    data = model_card.data.to_dict()
    assert data == {
        "license": "creativeml-openrail-m", "library_name": "diffusers", "pipeline_tag": "text-to-image",
        "instance_prompt": "a photo of sks robot",
        "tags": ["text-to-image", "dreambooth", "stable-diffusion", "diffusers"],
        "widget": [{"text": "a photo of sks robot", "output": {"url": "images/step-000004.png"}},
                   {"text": "a photo of robot"}],
    }  # fmt: skip
    text = model_card.text
    for part in ("from 5 photos", "weight 1: 2 class images for `a photo of robot`", "- `train.steps`: `4`",
                 "<Gallery", "- `samples.before_after`: `True` (default `False`)", "numpy ",
                 "called `a photo of sks robot`"):  # fmt: skip
        assert part in text, part
    assert "Licence" not in text and "## Licence" in card_of(run)


def test_photos_are_told_by_kind_not_by_title(run):
    report = gather(run)
    assert [album.kind for album in report.albums] == ["instance", "prior"]
    albums = [dataclasses.replace(album, title=f"Pictures {album.kind}") for album in report.albums]
    renamed = dataclasses.replace(report, albums=albums)
    assert card(renamed, Shown(ID, 4), "id") == card(report, Shown(ID, 4), "id")
    assert "from 5 photos" in card(renamed, Shown(ID, 4), "id")
    assert "2 class images" in card(renamed, Shown(ID, 4), "id")
    assert len(list(push._photos(renamed))) == 5


def test_a_base_from_the_hub(run):
    manifest = json.loads((run / "manifest.json").read_text())
    origin = {"source": "some/base", "revision": "", "id": "some/base", "commit": "c" * 40}
    (run / "manifest.json").write_text(json.dumps({**manifest, "model from the hub": origin}))
    assert "base_model: some/base\nbase_model_relation: finetune\n" in card_of(run)
    lora = card_of(edited(run, adapter__kind="lora"))
    assert "base_model_relation: adapter\n" in lora and 'StableDiffusionPipeline.from_pretrained("some/base"' in lora
    assert f"at commit `{'c' * 40}`" in lora


def test_prompts_are_shown_as_they_are(run):
    evil = 'a "photo" of `sks`: <b>robot</b>\n---\n# no'
    text = card_of(edited(run, instance__prompt=evil, prior__weight=0.0))
    front, body = text.split("\n---\n", 1)
    assert "Without prior preservation." in body and "# no" not in re.findall(r"^#.*", body, re.MULTILINE)
    assert "`` " + " ".join(evil.split()) + " ``" in body
    compile(re.search(r"```python\n(.*?)```", body, re.DOTALL)[1], "card", "exec")
    assert ModelCard(text).data.instance_prompt == evil and front.startswith("---\n")


@pytest.fixture
def in_diffusers(hub, tmp_path, monkeypatch):
    """diffusers asks that hub too, and its pictures are left in another folder."""
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    monkeypatch.chdir(tmp_path)


def example(hub):
    """The Python of the card, run on a CPU; returns what it leaves."""
    text = hub.files(ID)["README.md"].decode()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    short = code.replace('.to("cuda", torch.float16)', "").replace(").images", ", num_inference_steps=2).images")
    names = {}
    exec(short, names)
    return names


def test_the_example_of_a_pipeline(hub, account, run, in_diffusers):
    Destination(ID).push(run)
    bias = example(hub)["pipe"].unet.conv_out.bias.detach().numpy()
    assert np.array_equal(bias, open_pipeline(run / "pipeline").tensors("unet")["conv_out.bias"])
    assert Image.open("picture.png").size == (64, 64)


def test_the_example_of_a_lora_with_new_tokens(hub, account, run, tiny_pipeline, in_diffusers):
    base = hub.push("some/base", files_of(tiny_pipeline))
    manifest = json.loads((run / "manifest.json").read_text())
    origin = {"source": "some/base", "revision": "", "id": "some/base", "commit": base}
    (run / "manifest.json").write_text(json.dumps({**manifest, "model from the hub": origin}))
    edited(run, adapter__kind="lora", tokens__add=["<saya_token>=robot"], train__zero_terminal_snr=True,
           instance__prompt="a photo of <saya_token>")  # fmt: skip
    adapter = adapters.adapter_of(gather(run).config, open_pipeline(str(tiny_pipeline)))
    random = np.random.default_rng(0)
    tensors = [(*name.split(".", 1), random.normal(size=shape).astype(np.float32))
               for name, shape in adapter.tensor_shapes().items()]  # fmt: skip
    lora_file.write_lora(run / "lora", adapter, tensors, "fp32", 4)
    width = open_pipeline(str(tiny_pipeline)).component_config("text_encoder")["hidden_size"]
    (run / "tokens").mkdir()
    save_file({"<saya_token>": np.ones(width, np.float32)}, run / "tokens" / "saya_token.safetensors")
    Destination(ID).push(run)
    assert set(hub.files(ID)) == {".gitattributes", "README.md", "images/step-000004.png", lora_file.FILE,
                                  "tokens/saya_token.safetensors"}  # fmt: skip
    pipe = example(hub)["pipe"]
    assert "<saya_token>" in pipe.tokenizer.get_vocab() and pipe.get_active_adapters() == ["default_0"]
    assert pipe.scheduler.config.rescale_betas_zero_snr and pipe.scheduler.config.timestep_spacing == "trailing"
