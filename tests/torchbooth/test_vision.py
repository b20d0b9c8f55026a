"""DINO and CLIP: preprocessing as transformers' processors, vectors as a plain loop over the networks gives them."""

import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, ViTModel

from booth.commands import cli
from booth.common.errors import UserError
from booth.data.image_file import load_image
from booth.data.image_folder import find_images
from booth.evaluate import scores
from booth.evaluate.prompts import LIVE_SUBJECTS, OBJECTS
from torchbooth import vision
from torchbooth.vision import Clip, Dino, clip_preprocessing, dino_preprocessing

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
DREAMBENCH = Path(os.environ.get("DREAMBENCH", "dreambench"))  # a copy of github.com/google/dreambooth's `dataset`


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = [(300, 500), (224, 224), (256, 256), (255, 383), (40, 30), (512, 301)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def worst(prepare, processor, pictures):
    theirs = [processor(Image.fromarray(picture), return_tensors="np").pixel_values[0] for picture in pictures]
    return max(np.abs(prepare(mine) - their).max() for mine, their in zip(pictures, theirs, strict=True))


def test_preprocessing_equals_transformers(pictures):
    dino = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, **IMAGENET}
    assert worst(clip_preprocessing(), CLIPImageProcessorPil(), pictures) < 1e-6
    assert worst(dino_preprocessing(), CLIPImageProcessorPil(**dino), pictures) < 1e-6
    wrong = {"resample": 2}, {"size": {"shortest_edge": 224}}, {"do_rescale": False}, {"image_mean": (0.5, 0.5, 0.5)}
    assert all(worst(dino_preprocessing(), CLIPImageProcessorPil(**dino | change), pictures) > 0.05 for change in wrong)
    assert dino_preprocessing()(pictures[0]).shape == (3, 224, 224)


def test_vectors_equal_a_plain_loop(measuring_networks, pictures, monkeypatch):
    """One picture after another through the library's own processors, tokenizer and features."""
    vit = ViTModel.from_pretrained(measuring_networks / "dino", add_pooling_layer=False).eval()
    clip = CLIPModel.from_pretrained(measuring_networks / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(measuring_networks / "clip")
    for_dino = CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, **IMAGENET)
    for_clip = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    texts = ["a dog in the jungle", "a", "a red dog on top of a wooden floor"]
    expected = {"dino": [], "clip": [], "texts": []}
    with torch.no_grad():
        for picture in pictures:
            pixels = for_dino(Image.fromarray(picture), return_tensors="pt").pixel_values
            expected["dino"].append(vit(pixels).last_hidden_state[0, 0])
            pixels = for_clip(Image.fromarray(picture), return_tensors="pt").pixel_values
            expected["clip"].append(clip(**tokenizer(["a"], return_tensors="pt"), pixel_values=pixels).image_embeds[0])
        for text in texts:
            ids = tokenizer([text], return_tensors="pt")
            expected["texts"].append(clip(**ids, pixel_values=pixels).text_embeds[0])
    expected = {name: torch.stack(vectors) for name, vectors in expected.items()}
    expected = {name: (vectors / vectors.norm(dim=-1, keepdim=True)).numpy() for name, vectors in expected.items()}
    monkeypatch.setattr(vision, "_BATCH", 4)  # more than one batch
    ours = Clip(str(measuring_networks / "clip"))
    found = {"dino": Dino(str(measuring_networks / "dino")).look(pictures), "clip": ours.look(pictures),
             "texts": ours.read(texts)}  # fmt: skip
    for name, vectors in expected.items():
        assert found[name].dtype == np.float32 and found[name].shape == vectors.shape
        assert np.abs(found[name] - vectors).max() < 1e-5, name
        assert np.abs(found[name] - vectors[::-1]).max() > 1e-3, "the order is noticed"
    pairs = [float(a @ b) for a in expected["dino"][:4] for b in expected["dino"][4:]]
    assert scores.fidelity(found["dino"][:4], found["dino"][4:]) == pytest.approx(np.mean(pairs), abs=1e-5)


def test_what_cannot_be_loaded_is_one_line(measuring_networks, tmp_path, hub):
    with pytest.raises(UserError, match="--dino nowhere is no folder"):
        Dino("nowhere")
    with pytest.raises(UserError, match="is not in the hub's cache; fetch it: hf download owner/name"):
        Dino("owner/name")
    with pytest.raises(UserError, match=r"--dino owner/name is not in .*: hf download owner/name --revision v2"):
        Dino("https://huggingface.co/owner/name/tree/v2")
    with pytest.raises(UserError, match=r"cannot be loaded \(.*\); it must hold config.json and model.safetensors"):
        Dino(str(tmp_path))
    with pytest.raises(UserError, match="holds no CLIPModel; give one such as"):
        Clip(str(measuring_networks / "dino"))
    with pytest.raises(UserError, match="holds no vision transformer"):
        Dino(str(measuring_networks / "clip"))
    ViTModel.from_pretrained(measuring_networks / "dino", add_pooling_layer=False).save_pretrained(tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "cut" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"is incomplete: it lacks layernorm\.weight"):
        Dino(str(tmp_path / "cut"))


@pytest.mark.parametrize(("network", "name"), [(Dino, "dino"), (Clip, "clip")])
@pytest.mark.parametrize("cached", [False, True])
def test_pickles_are_converted_by_the_command_that_is_said(
    network, name, cached, measuring_networks, pictures, tmp_path, hub
):
    """As a folder with a space in its name, and as a snapshot in the hub's cache."""
    folder = shutil.copytree(measuring_networks / name, tmp_path / "of mine")
    expected = network(str(folder)).look(pictures[:2])
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    source = str(folder)
    if cached:
        hub.push("owner/name", {path.name: path.read_bytes() for path in folder.iterdir()})
        source, folder = "owner/name", Path(snapshot_download("owner/name"))
    with pytest.raises(UserError, match="has its weights in a pickle only") as refused:
        network(source)
    said = shlex.split(str(refused.value).rpartition("convert them once: ")[2])
    assert said == ["torchbooth", "convert", str(folder / "pytorch_model.bin"), "--out",
                    str(folder / "model.safetensors")]  # fmt: skip
    assert cli.main(said[0], said[1:]) == 0
    assert np.array_equal(network(source).look(pictures[:2]), expected)


def compare(capsys, *arguments):
    code = cli.main("torchbooth", ["evaluate", *map(str, arguments)])
    done = capsys.readouterr()
    if code:
        return done.err.splitlines()[-1].removeprefix("torchbooth: error: ")
    header, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines())
    return {line[0]: dict(zip(header[1:], line[1:], strict=True)) for line in lines}


def test_two_folders_of_pictures(measuring_networks, pictures, tmp_path, capsys):
    for place, picture in enumerate(pictures):
        folder = tmp_path / ("real" if place < 2 else "made")
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{place}.png")
    given = ("--pictures", tmp_path / "made", "--real", tmp_path / "real", "--dino", measuring_networks / "dino")
    dino, clip = Dino(str(measuring_networks / "dino")).look(pictures), Clip(str(measuring_networks / "clip"))
    found = compare(capsys, *given)
    assert found["pictures"] == {"dino": f"{scores.fidelity(dino[2:], dino[:2]):.3f}",
                                 "diversity": f"{1 - scores.likeness(dino[2:]):.3f}"}  # fmt: skip
    assert found["real"]["dino"] == f"{float(dino[0] @ dino[1]):.3f}"
    found = compare(capsys, *given, "--clip", measuring_networks / "clip", "--prompt", "a dog")
    looks, text = clip.look(pictures), clip.read(["a dog"])
    assert list(found["pictures"]) == ["dino", "clip_i", "clip_t", "diversity"]
    assert found["pictures"]["clip_i"] == f"{scores.fidelity(looks[2:], looks[:2]):.3f}"
    assert found["pictures"]["clip_t"] == f"{(looks[2:] @ text[0]).mean():.3f}"
    assert compare(capsys, *given[:2], *given[4:]).startswith("--real is missing")
    assert compare(capsys, *given, "--prompt", "a dog").startswith("--prompt needs --clip")
    assert compare(capsys, *given[:4]).startswith("--dino or --clip is missing")
    (tmp_path / "empty").mkdir()
    assert compare(capsys, *given[:2], "--real", tmp_path / "empty", *given[4:]).endswith("give a folder with pictures")


@pytest.mark.skipif(not DREAMBENCH.is_dir(), reason="DreamBench's photos are not here")
def test_dreambench(measuring_networks, capsys):
    """Its prompts are ours, and its real photos go through: real against real, pair by pair."""
    text = (DREAMBENCH / "prompts_and_classes.txt").read_text()
    listed = [line.replace("{0} {1}", "{}") for line in re.findall(r"^'(a .*?)'\.format", text, re.MULTILINE)]
    assert tuple(listed) == OBJECTS + LIVE_SUBJECTS
    found = compare(
        capsys, "--pictures", DREAMBENCH / "cat", "--real", DREAMBENCH / "dog", "--dino", measuring_networks / "dino"
    )
    network = Dino(str(measuring_networks / "dino"))
    cat, dog = (network.look([np.asarray(load_image(path)) for path in find_images(DREAMBENCH / name, "")])
                for name in ("cat", "dog"))  # fmt: skip
    assert found["pictures"]["dino"] == f"{np.mean([a @ b for a in cat for b in dog]):.3f}"
    pairs = [a @ b for place, a in enumerate(dog) for b in dog[place + 1 :]]
    assert found["real"]["dino"] == f"{np.mean(pairs):.3f}"
