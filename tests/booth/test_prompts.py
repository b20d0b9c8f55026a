"""Prompts -> token ids, as the pipeline's own tokenizer makes them."""

import json
import shutil

import numpy as np
import pytest
from transformers import CLIPTokenizer

from booth.common.errors import UserError
from booth.models.tokenizer import Tokenizer

START, END = 1022, 1023  # of the tiny pipeline's vocabulary


@pytest.fixture(scope="module")
def folder(tiny_pipeline):
    return tiny_pipeline / "tokenizer"


@pytest.fixture
def tokenizer(folder):
    return Tokenizer(folder, 77)


def test_begin_text_end_padding(tokenizer):
    ids = tokenizer(["a photo of robot", ""])
    assert ids.dtype == np.int32 and ids.shape == (2, 77)
    assert ids[0, 0] == START and START not in ids[0, 1:]
    assert (ids[0, 5:] == END).all() and END not in ids[0, :5], "four words that are one token each"
    assert (ids[1] == [START, *[END] * 76]).all()


def test_equal_to_the_tokenizer_of_transformers(tokenizer, folder):
    prompts = ["a photo of sks robot", "Größe, 犬 & 🐕!", "  A  PHOTO  ", "x" * 40]
    reference = CLIPTokenizer.from_pretrained(folder)(prompts, padding="max_length", max_length=77)["input_ids"]
    assert tokenizer(prompts).tolist() == reference


def test_the_pad_token_is_the_tokenizers_own(folder, tmp_path):
    """SD2 pads with "!", SD1 with the end of text."""
    changed = shutil.copytree(folder, tmp_path / "tokenizer")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((changed / name).read_text())
        (changed / name).write_text(json.dumps(content | {"pad_token": "!"}))
    ids, exclamation = Tokenizer(changed, 77)(["a photo"])[0], Tokenizer(folder, 77)(["!"])[0, 1]
    assert ids[3] == END and (ids[4:] == ids[4]).all()
    assert ids[4] == CLIPTokenizer.from_pretrained(changed).pad_token_id != END
    assert exclamation != END


def test_vocabulary_files_of_older_pipelines(folder, tmp_path, tokenizer):
    old = shutil.copytree(folder, tmp_path / "tokenizer")
    (old / "tokenizer.json").unlink()
    assert (Tokenizer(old, 77)(["a photo of sks robot"]) == tokenizer(["a photo of sks robot"])).all()


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_a_broken_tokenizer(folder, tmp_path, text):
    broken = shutil.copytree(folder, tmp_path / "tokenizer")
    (broken / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer is broken \(.+\); download it again"):
        Tokenizer(broken, 77)


def test_a_long_prompt_is_cut_with_a_warning_that_quotes_the_rest(tokenizer, caplog):
    fits = " ".join(["photo"] * 75)
    assert (tokenizer([fits])[0, 1:76] == tokenizer(["photo"])[0, 1]).all()
    assert not caplog.records
    ids = tokenizer([f"{fits} robot toy", "robot"])
    assert (ids[0] == tokenizer([fits])[0]).all(), "the end of text stays"
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("prompt longer than 75 tokens, cut before 'robot toy")
    tokenizer([f"{fits} robot toy"])
    assert len(caplog.records) == 1, "once a prompt"
    tokenizer([f"{fits} dog"])
    assert len(caplog.records) == 2
