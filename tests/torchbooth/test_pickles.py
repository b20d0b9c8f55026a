"""Checkpoints that are pickles: their tensors become safetensors, and nothing in them is ever run."""

import re

import pytest
import torch
from safetensors.torch import load_file

from booth.common import host_memory
from booth.common.errors import UserError
from torchbooth import pickles


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def refusal(source, out):
    with pytest.raises(UserError) as caught:
        pickles.convert(source, out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_by_name_whatever_is_around_them(tmp_path):
    weight = torch.randn(4, 4)
    content = {"a": weight, "b": weight.T, "half": weight[:2], "count": torch.tensor(3), "text": "not a tensor"}
    for name, saved in (("flat", content), ("lightning", {"state_dict": content, "global_step": 7})):
        torch.save(saved, tmp_path / f"{name}.ckpt")
        pickles.convert(tmp_path / f"{name}.ckpt", tmp_path / f"{name}.safetensors")
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == content.keys() - {"text"}
        assert all(torch.equal(found[key], content[key]) for key in found)


def test_what_would_run_is_not_run(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "evil": Evil(tmp_path / "ran")}, tmp_path / "x.ckpt")
    assert "contains code besides tensors, which is never run" in refusal(
        tmp_path / "x.ckpt", tmp_path / "x.safetensors"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (
            torch.zeros(1).expand(2**42),
            r"a\.ckpt, converted, takes 17592\.19 GB of memory, and ",
        ),  # one number in the file
        (torch.zeros(2, dtype=torch.complex128), r"has tensors that safetensors cannot hold \(.*complex128\)"),
        (torch.eye(2).to_sparse(), "a.ckpt "),
    ],
)
def test_tensors_that_cannot_be_written(tensor, said, tmp_path):
    torch.save({"a": tensor}, tmp_path / "a.ckpt")
    assert re.search(said, refusal(tmp_path / "a.ckpt", tmp_path / "a.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_more_than_there_is_memory_for(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.ckpt")
    monkeypatch.setattr(host_memory, "available", lambda: 3999)
    assert "KB of memory, and 4.0 KB are available" in refusal(tmp_path / "a.ckpt", tmp_path / "a.safetensors")


def test_refuses_what_it_cannot_convert(tmp_path, monkeypatch):
    source, out = tmp_path / "x.ckpt", tmp_path / "x.safetensors"
    assert "no such file" in refusal(source, out)
    source.write_bytes(b"")
    assert "is broken" in refusal(source, out)
    source.write_bytes(b"PK\3\4 cut")
    assert "is broken" in refusal(source, out)
    torch.save([torch.zeros(1)], source)
    assert "has no tensors by name" in refusal(source, out)
    assert "must end with .safetensors" in refusal(source, tmp_path / "x.pt")
    out.touch()
    assert "exists; choose another name" in refusal(source, out)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    assert "install torch 2.6 or newer" in refusal(source, out)
    assert not out.read_bytes()
