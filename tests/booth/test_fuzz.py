"""Whatever is in a file or on the command line is read, or refused with one line: never another exception.

Hypothesis makes the examples, the same ones every time.
"""

import contextlib
import io
import json
import math
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from make_image_corpus import HEIC
from PIL import Image
from safetensors.numpy import save

from booth.common.errors import UserError
from booth.config.fields import FIELDS
from booth.config.loading import load_config
from booth.config.texts import parse_text
from booth.config.values import flatten, resolved, set_field
from booth.data.images import read_examples
from booth.data.input_rules import validate
from booth.data.views import pixels, views
from booth.models import ldm_layout
from booth.models.open import open_pipeline
from booth.models.pipeline import Weights, read_specs
from booth.models.tokenizer import Tokenizer
from booth.models.weight_names import canonical_name

set_hypothesis_home_dir(Path(__file__).parents[2] / ".cache" / "hypothesis")


@pytest.fixture(params=["short", pytest.param("long", marks=pytest.mark.full)])
def fuzz(request):
    """`fuzz(check, examples, arguments...)` calls `check` with many drawn arguments; how often it read and refused."""

    def run(check, examples, **arguments):
        outcomes = Counter()

        @settings(
            max_examples=examples * (20 if request.param == "long" else 1), derandomize=True, deadline=None,
            database=None, suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(**arguments)
        def attempt(**drawn):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    check(**drawn)
                except UserError as error:
                    assert str(error) and len(str(error).splitlines()) == 1, "one line"
                    outcomes["refused"] += 1
                else:
                    outcomes["read"] += 1

        attempt()
        return outcomes

    return run


@st.composite
def damaged(draw, originals):
    """Bytes of one of the originals with a few of them overwritten, left out, repeated or cut off."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["overwrite", "number", "remove", "repeat", "cut"])):
            case "overwrite":
                new = draw(st.binary(min_size=1, max_size=3))
                content[place : place + len(new)] = new
            case "number":  # sizes and offsets are numbers of four or eight bytes
                extreme = draw(st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\0\0\0\x80"]))
                content[place : place + 4] = extreme
            case "remove":
                del content[place : place + draw(st.integers(1, 40))]
            case "repeat":
                content[place:place] = content[place : place + draw(st.integers(1, 40))]
            case "cut":
                del content[place:]
    return bytes(content)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([0, 1, -1, 77, 2**31, 2**63, -(2**63), 2**64, 10**40, "", "a", "\0", "\n", "\ud800", 0.5, 1e300])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@st.composite
def altered(draw, original):
    """A JSON document with one or two values replaced or left out, at any depth."""
    document = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 2))):
        holder = document
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            deeper = isinstance(holder[key], dict | list) and draw(st.integers(0, 3))
            if deeper:
                holder = holder[key]
                continue
            if draw(st.booleans()):
                holder[key] = draw(VALUES)
            else:
                del holder[key]
            break
    return document


# Configs.

NAMES = st.sampled_from([field.name for field in FIELDS])
KEYS = st.sampled_from([part for field in FIELDS for part in (field.name, *field.name.split("."))]) | st.text(
    max_size=8
)
ANYTHING = st.tuples(
    st.text(max_size=9), st.sampled_from(["", "\ud800", "\udcff", "\0", "\u2028"]), st.text(max_size=9)
)
ODD_TEXTS = ["true", "nan", "1e999", "-inf", "0x10", "1_0", "[a, b]", "[", "[!!int x]", "[*a]", "{}", "!!bool x", "8GB",
             "9" * 5000, "9" * 400 + "GB", "gs://b/c", "s3://x", "~nobody/x", "owner/name", "embedded",
             "a{99999999999999999999}", "(" * 5000 + ")" * 5000]  # fmt: skip
TEXTS = ANYTHING.map("".join) | st.sampled_from(ODD_TEXTS) | SCALARS.map(str)
TREES = st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=3) | VALUES, max_size=4)
FULL = {"train": {"steps": 10, "learning_rate": 1e-5, "unet": True, "gradient_checkpointing": "block",
                  "checkpointed_blocks": ["mid_block"]},
        "instance": {"images": "photos/", "prompt": "a photo of sks dog"}, "model": {"source": "owner/name"},
        "prior": {"prompt": "a photo of dog", "weight": 0.5, "images": "~/class_images"}}  # fmt: skip
TAGS = ["int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "map", "seq", "str", "merge",
        "python/tuple", "python/object/apply:os.system", "x"]  # fmt: skip
TAGGED = ["''", "x", "[1]", "{a: 1}", "[a, a]", "9999-99-99", "0001-01-01 00:00:00 +23:59", "1:2:3", "0b", "-", "_",
          "+", "=", "<<", ".", "1e", "0x", "[{a: 1}]", "aGVs"]  # fmt: skip
TAGGED_TEXTS = st.builds(
    lambda tag, text: f"train:\n  steps: !!{tag} {text}\n".encode(), st.sampled_from(TAGS), st.sampled_from(TAGGED)
)


def check_config(config):
    """What follows on the reading of a config."""
    assert all(type(value) in (int, float, bool, str, tuple) for value in flatten(config).values())
    assert json.loads(json.dumps(flatten(config)))
    validate(resolved(config), "torch", frozenset({"fp16", "optimizers", "memory techniques"}))


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_config_files(fuzz, tmp_path, suffix):
    path = tmp_path / f"config{suffix}"

    def check(content):
        path.write_bytes(content)
        config = load_config(path)
        with contextlib.suppress(UserError):
            check_config(config)

    written = yaml.safe_dump if suffix == ".yaml" else json.dumps
    outcomes = fuzz(check, 100, content=damaged([written(FULL).encode()]))
    assert outcomes["read"] and outcomes["refused"]
    trees = TREES | altered(FULL)
    outcomes = fuzz(check, 150, content=trees.map(lambda tree: written(tree).encode("utf-8", "surrogatepass")))
    assert outcomes["read"] and outcomes["refused"]
    assert fuzz(check, 100, content=st.binary() | st.text().map(str.encode) | TAGGED_TEXTS)["refused"]


def test_config_overrides(fuzz, tmp_path):
    (tmp_path / "config.json").write_bytes(json.dumps(FULL).encode())

    def check(overrides):
        check_config(load_config(tmp_path / "config.json", overrides))

    outcomes = fuzz(check, 300, overrides=st.lists(st.tuples(NAMES | KEYS, TEXTS), max_size=3))
    assert outcomes["read"] and outcomes["refused"]


def test_config_values(fuzz, tmp_path):
    (tmp_path / "config.json").write_bytes(json.dumps(FULL).encode())

    def check(name, text, value):
        assert parse_text(name, text) is not ...
        config = load_config(tmp_path / "config.json")
        set_field(config, name, value)
        check_config(config)

    outcomes = fuzz(check, 300, name=NAMES, text=TEXTS, value=VALUES)
    assert outcomes["read"] and outcomes["refused"]


# Pictures.


def pictures():
    """Small pictures of every format and pixel type that photos come in, by suffix."""
    colours = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    rgb, grey16 = Image.fromarray(colours), Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photo"
    kinds = [
        (".png", rgb, {}), (".png", rgb.convert("P"), {"transparency": 3}), (".png", grey16, {}),
        (".png", rgb.convert("RGBA"), {"exif": exif}), (".png", rgb.convert("1"), {}), (".jpg", rgb, {"exif": exif}),
        (".jpg", rgb.convert("CMYK"), {}), (".jpg", rgb, {"progressive": True}), (".gif", rgb, {"transparency": 0}),
        (".gif", rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}), (".bmp", rgb, {}),
        (".bmp", rgb.convert("P"), {}), (".tiff", rgb, {"compression": "tiff_lzw", "exif": exif}),
        (".tiff", grey16, {}), (".tiff", rgb.convert("LAB"), {}), (".tiff", rgb, {"compression": "jpeg"}),
        (".tiff", rgb.convert("F"), {}), (".webp", rgb, {"lossless": True}),
        (".webp", rgb.convert("RGBA"), {"exif": exif}), *[(".heic", rgb, {})] * HEIC,
    ]  # fmt: skip
    found = {}
    for suffix, image, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, Image.registered_extensions()[suffix], **options)
        found.setdefault(suffix, []).append(buffer.getvalue())
    return found


PICTURES = pictures()


@pytest.mark.parametrize("suffix", PICTURES)
def test_photos(fuzz, tmp_path, suffix):
    path = tmp_path / f"photo{suffix}"

    def check(content):
        path.write_bytes(content)
        (example,) = read_examples([path], "a photo", "instance", "instance.images")
        for view in views(example, (8, 8), "random", 1, True, 0):
            shown = pixels(view)
            assert shown.shape == (8, 8, 3) and np.isfinite(shown).all()

    outcomes = fuzz(check, 150, content=damaged(PICTURES[suffix]))
    assert outcomes["read"] and outcomes["refused"]
    assert fuzz(check, 30, content=st.binary(max_size=200))["refused"]


# Weights.

WEIGHTS = save({"conv_in.weight": np.ones((9, 9), np.float32), "b": np.ones(4, np.float16),
                "a.position_ids": np.arange(3)})  # fmt: skip
SIZES = st.integers(-1, 9) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64])
TENSORS = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "C64", "X", 1]),
     "shape": st.lists(SIZES, max_size=3), "data_offsets": st.lists(SIZES, min_size=2, max_size=2)},
    optional={"more": VALUES},
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", "position_ids", "", "\n", "\0", "__metadata__"]), TENSORS | VALUES, max_size=3
)
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I8": 8, "BOOL": 8, "F8_E4M3": 8, "F4": 4, "C64": 64}
ONE_TENSOR = st.builds(
    lambda name, dtype, times: {name: {"dtype": dtype, "shape": [128 // BITS[dtype], times], "data_offsets": [0, 16]}},
    st.sampled_from(["a", "x.position_ids", "\u2028"]), st.sampled_from(sorted(BITS)), st.sampled_from([1, 1, 2, 0]),
)  # fmt: skip


def with_length(header):
    return len(header).to_bytes(8, "little") + header


def test_weight_files(fuzz, tmp_path):
    path = tmp_path / "model.safetensors"

    def check(content):
        path.write_bytes(content)
        specs = read_specs(path)
        assert sum(spec.nbytes for spec in specs.values()) <= len(content)
        for key, array in Weights(None, {path: specs}).read():
            assert array.shape == specs[key].shape and array.nbytes == specs[key].nbytes
            assert key.isprintable() and canonical_name("vae", key)

    outcomes = fuzz(check, 200, content=damaged([WEIGHTS]))
    assert outcomes["read"] and outcomes["refused"]
    headers = (HEADERS | ONE_TENSOR).map(lambda header: with_length(json.dumps(header).encode()) + bytes(16))
    outcomes = fuzz(check, 200, content=headers)
    assert outcomes["read"] and outcomes["refused"]
    texts = st.binary().map(with_length) | st.binary() | st.text().map(lambda text: with_length(text.encode()))
    assert fuzz(check, 50, content=texts)["refused"]


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 64, 128]), max_size=5)
EDITS = st.tuples(
    st.sampled_from(["shape", "dtype", "name", "gone", "more"]), st.integers(0, 424), SHAPES,
    st.sampled_from(["F32", "F16", "I64", "F8_E4M3"]),
    st.sampled_from(["model_ema.decay", "cond_stage_model.model.x", "lora_unet_x", "\n", "", "first_stage_model.x"]),
)  # fmt: skip


def test_single_files(fuzz, tiny_pipeline, tmp_path):
    """Whole safetensors files, with the keys of a model or nearly so: zeros, which a file system need not store."""
    config = {
        name: json.loads((tiny_pipeline / name / "config.json").read_text()) for name in ("unet", "vae", "text_encoder")
    }
    keys = list(ldm_layout.table(config))
    specs = {
        (name, canonical_name(name, key)): spec
        for name in config
        for path in (tiny_pipeline / name).glob("*.safetensors")
        for key, spec in read_specs(path).items()
    }
    whole = {}
    for key, piece in ldm_layout.table(config).items():
        shape = list(specs[piece.component, piece.names[0]].shape)
        whole[key] = "F32", [*shape, 1, 1] if piece.pointwise else shape

    def check(edits, metadata, text):
        tensors = dict(whole)
        for what, place, shape, dtype, name in edits:
            key = keys[place % len(keys)]
            if what == "gone":
                tensors.pop(key, None)
            elif key in tensors:
                old = tensors[key]
                new = {"shape": (old[0], shape), "dtype": (dtype, old[1])}.get(what, old)
                tensors[name if what in ("name", "more") else key] = new
        header, end = {"__metadata__": metadata}, 0
        for key, (dtype, shape) in tensors.items():
            start, end = end, end + BITS[dtype] // 8 * math.prod(shape)
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        file = tmp_path / "dog.safetensors"
        with file.open("wb") as opened:
            opened.write(with_length(json.dumps(header).encode()))
            opened.truncate(opened.tell() + end)
        file.with_suffix(".yaml").write_text(text, encoding="utf-8")
        pipeline = open_pipeline(file, config=str(tiny_pipeline))
        for component in pipeline.family.networks:
            for _, array in pipeline.weights[component].read():
                assert array.size

    outcomes = fuzz(
        check, 150, edits=st.lists(EDITS, max_size=2),
        metadata=st.dictionaries(st.sampled_from(["modelspec.prediction_type", "modelspec.architecture"]),
                                 st.sampled_from(["v", "epsilon", "", "stable-diffusion-v2-768-v/lora"])),
        text=st.sampled_from(["", "model: {params: {parameterization: v}}", "model: [", "model: {params: 3}", "*a"]),
    )  # fmt: skip
    assert outcomes["read"] and outcomes["refused"]


def test_pipeline_folders(fuzz, tiny_pipeline, tmp_path):
    """Index files, and the configs as far as opening reads them."""
    names = ("model_index.json", "unet/config.json", "text_encoder/config.json", "vae/config.json")
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    originals = {name: json.loads((tiny_pipeline / name).read_bytes()) for name in names}
    originals[index] = {"metadata": {"total_size": 1}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    for name in ("scheduler", "tokenizer", "text_encoder", "vae"):
        shutil.copytree(tiny_pipeline / name, tmp_path / name)
    (tmp_path / "unet").mkdir()
    for shard in ("a", "b"):
        (tmp_path / "unet" / f"{shard}.safetensors").write_bytes(WEIGHTS)

    def check(change):
        name, content = change
        for other in originals:
            (tmp_path / other).write_bytes(json.dumps(originals[other]).encode() if other != name else content)
        pipeline = open_pipeline(tmp_path)
        assert pipeline.weights and pipeline.latent_scaling and pipeline.config_hashes()

    def changes(name):
        structured = altered(originals[name]).map(lambda document: json.dumps(document).encode())
        return st.tuples(st.just(name), structured | damaged([json.dumps(originals[name]).encode()]))

    outcomes = fuzz(check, 150, change=st.sampled_from(sorted(originals)).flatmap(changes))
    assert outcomes["read"] and outcomes["refused"]


# Tokenizers.


def assert_ids(ids, prompts):
    assert ids.dtype == np.int32 and ids.shape == (len(prompts), 77)
    assert ids.min() >= 0 and ids.max() < 1024


def test_prompts(fuzz, tiny_pipeline):
    tokenizer = Tokenizer(tiny_pipeline / "tokenizer", 77, 1024)

    def check(prompts):
        try:
            assert_ids(tokenizer(prompts), prompts)
        except UserError as error:
            assert "is not all UTF-8" in str(error)
            assert any("\ud800" <= character <= "\udfff" for prompt in prompts for character in prompt)
            raise

    long = st.builds(lambda text, count: text * count, st.text(min_size=1, max_size=4), st.integers(1, 400))
    assert fuzz(check, 200, prompts=st.lists(st.text() | long, min_size=1, max_size=3))["refused"] == 0
    outcomes = fuzz(check, 100, prompts=st.lists(ANYTHING.map("".join), min_size=1, max_size=3))
    assert outcomes["read"] and outcomes["refused"]


@pytest.mark.parametrize("whole", [True, False], ids=["tokenizer.json", "vocab.json and merges.txt"])
def test_vocabularies(fuzz, tiny_pipeline, tmp_path, whole):
    folder = shutil.copytree(tiny_pipeline / "tokenizer", tmp_path / "tokenizer")
    if not whole:  # as older pipelines are
        (folder / "tokenizer.json").unlink()
    originals = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    prompts = ["a photo of sks robot", "Größe, 犬 & 🐕!", "x" * 400]

    def check(change):
        name, content = change
        for other in originals:
            (folder / other).write_bytes(originals[other] if other != name else content)
        assert_ids(Tokenizer(folder, 77, 1024)(prompts), prompts)

    def changes(name):
        content = damaged([originals[name]])
        if name.endswith(".json"):
            document = json.loads(originals[name])
            content |= altered(document).map(lambda changed: json.dumps(changed).encode())
        return st.tuples(st.just(name), content)

    outcomes = fuzz(check, 150, change=st.sampled_from(sorted(originals)).flatmap(changes))
    assert outcomes["read"] and outcomes["refused"]
