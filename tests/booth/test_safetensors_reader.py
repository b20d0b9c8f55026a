"""Files that need more memory than there is, and libraries that panic: one line, whoever reads."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from booth.common import host_memory
from booth.common.errors import ENDS, UserError, reading
from booth.evaluate import yardstick
from booth.models import safetensors_reader
from booth.models.lora_file import read_lora
from booth.models.open import open_pipeline
from booth.models.safetensors_reader import opened


class PanicException(BaseException):
    """As pyo3's, with which a library in Rust ends where memory cannot be had."""


@pytest.fixture
def lora(tmp_path):
    layer = "unet.mid_block.attentions.0.proj_in"
    content = {f"{layer}.lora_A.weight": np.ones((2, 8)), f"{layer}.lora_B.weight": np.ones((8, 2))}
    save_file({key: array.astype(np.float32) for key, array in content.items()}, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


@pytest.fixture
def readers(lora, tiny_pipeline, tmp_path):
    """Name -> (what reads the tensors of a file, the file)."""
    from booth.models import export_single_file

    pipeline, single = open_pipeline(tiny_pipeline), tmp_path / "single.safetensors"
    export_single_file.write(pipeline, single)
    opened_single = open_pipeline(single, config=str(tiny_pipeline))
    yardstick._load.cache_clear()
    yield {
        "pipeline folder": (lambda: pipeline.tensors("unet"), tiny_pipeline),
        "shards": (lambda: list(pipeline.weights["vae"].read()), tiny_pipeline / "vae"),
        "single file": (lambda: opened_single.tensors("text_encoder"), single),
        "LoRA": (lambda: read_lora(lora), lora),
        "yardstick": (yardstick._load, yardstick.WEIGHTS),
    }
    yardstick._load.cache_clear()


READERS = ("pipeline folder", "shards", "single file", "LoRA", "yardstick")


@pytest.mark.parametrize("reader", READERS)
def test_more_than_there_is_memory_for(readers, reader, monkeypatch):
    read, path = readers[reader]
    assert read()
    yardstick._load.cache_clear()
    monkeypatch.setattr(host_memory, "available", lambda: 30)
    with pytest.raises(
        UserError, match=r" of memory, and 0\.0 KB are available; close other programs, or take"
    ) as caught:
        read()
    assert str(path) in str(caught.value)
    monkeypatch.setattr(host_memory, "available", lambda: None)
    assert read(), "where nothing is known, it is tried"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("error", [PanicException("PyObject pointer is null"), MemoryError(), RuntimeError("a\nb")])
def test_whatever_the_library_raises(readers, reader, error, monkeypatch):
    read, path = readers[reader]

    class Broken:
        def __init__(self, *arguments, **options):
            self._file = safe_open(*arguments, **options)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __getattr__(self, name):
            return getattr(self._file, name)

        def get_tensor(self, key):
            raise error

    safe_open = safetensors_reader.safe_open
    monkeypatch.setattr(safetensors_reader, "safe_open", Broken)
    with pytest.raises(UserError, match=r"B, cannot be read \(.+\); if there is memory enough for it, ") as caught:
        read()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert (str(error) or type(error).__name__).split("\n")[0] in str(caught.value)


@pytest.mark.parametrize("end", ENDS)
def test_what_ends_the_program_is_no_error(end):
    with pytest.raises(end), reading("it is broken", "mend it"):
        raise end


def test_a_refusal_stays_as_it_is():
    with pytest.raises(UserError, match=r"^in its own words$"), reading("it is broken", "mend it"):
        raise UserError("in its own words")


@pytest.mark.skipif(sys.platform != "linux", reason="limits and sizes of processes are read as Linux tells them")
def test_a_limited_address_space(tmp_path):
    """`ulimit -v`: a file that cannot be mapped, one whose tensor cannot be read, and one that fits."""
    path = tmp_path / "a.safetensors"
    save_file({"a": np.zeros(2**27, np.float32)}, path)  # half a gibibyte
    program = f"""
import resource
from pathlib import Path
from booth.models.safetensors_reader import opened
from booth.common.errors import UserError
before = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
for more in (0.25, 0.75, 1.5):
    resource.setrlimit(resource.RLIMIT_AS, (int(before + more * 2**30), resource.RLIM_INFINITY))
    try:
        with opened(Path({str(path)!r})) as file:
            print("read", len(file.tensor("a")))
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    unmapped, unread, read = done.stdout.splitlines()
    assert "is missing, truncated or broken (" in unmapped
    assert "a takes 536.9 MB of memory, and " in unread and read == f"read {2**27}"


def test_a_container(tmp_path, monkeypatch):
    """The strictest of the groups that a process is in; what is cached of files gives way."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    inner = groups / "outer" / "inner"
    for folder in (proc / "self", inner):
        folder.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  3000 kB\nSwapFree: 1000 kB\n")
    monkeypatch.setattr(host_memory, "_PROC", proc)
    monkeypatch.setattr(host_memory, "_CGROUPS", groups)
    monkeypatch.setattr(host_memory, "_of_address_space", lambda: ())
    assert host_memory.available() == 4000 * 1024
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    for folder, limit, used, cached in ((inner, "max", 5, 0), (inner.parent, "1000000", 800_000, 50_000)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    assert host_memory.available() == 250_000
    host_memory.require(250_000, "it")
    with pytest.raises(UserError, match=r"^it takes 250\.0 KB of memory, and 250\.0 KB are available; "):
        host_memory.require(250_001, "it")
    monkeypatch.setattr(host_memory, "_PROC", tmp_path / "nowhere")
    assert host_memory.available() is None


def test_keys_and_metadata(lora):
    with opened(lora) as file:
        assert len(file.specs()) == 2 and file.metadata == {}
