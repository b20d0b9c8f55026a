"""Nothing in the packages needs a POSIX system: read in their source, and tried where Windows can be imitated."""

import ast
import os
import re
import shutil
import sys
from pathlib import Path, PureWindowsPath

import pytest

from booth.common import files, host_memory
from booth.common.files import publish, remove, rename
from booth.train.loop import train

ROOT = Path(__file__).parents[2]
PACKAGES = ("booth", "jaxbooth", "torchbooth")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))

POSIX_MODULES = {"crypt", "fcntl", "grp", "nis", "posix", "posixpath", "pty", "pwd", "resource", "syslog", "termios",
                 "tty", "uvloop"}  # fmt: skip
POSIX_NAMES = {
    "os": {"O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "chown", "fchmod", "fork", "forkpty", "getegid", "geteuid",
           "getgid", "getgroups", "getloadavg", "getpgid", "getuid", "kill", "killpg", "lchown", "mkfifo", "mknod",
           "nice", "posix_fallocate", "sched_getaffinity", "sendfile", "setsid", "statvfs", "sync", "sysconf", "uname",
           "wait", "waitpid"},
    "signal": {"SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm", "pause", "setitimer",
               "sigwait"},
    "Path": {"chmod", "group", "hardlink_to", "is_mount", "owner", "symlink_to"},
}  # fmt: skip
ANY_OBJECT = POSIX_NAMES["Path"]  # methods: what they are called on is not known
TEXT = {"read_text", "write_text", "open"}


def complaints(source):
    """What in a module's source would fail, or do something else, on Windows."""
    return [f"line {node.lineno}: {what}" for node in ast.walk(ast.parse(source)) for what in _complaints(node)]


def _complaints(node):
    if isinstance(node, ast.Import | ast.ImportFrom):
        module = node.module if isinstance(node, ast.ImportFrom) else ""
        for name in [alias.name for alias in node.names] if not module else [module]:
            if name.partition(".")[0] in POSIX_MODULES:
                yield f"imports {name}"
        yield from (f"imports {module}.{a.name}" for a in node.names if a.name in POSIX_NAMES.get(module, ()))
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if node.attr in POSIX_NAMES.get(owner, ()) or node.attr in ANY_OBJECT:
            yield f"uses {owner}.{node.attr}"
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"/(tmp|dev|proc|usr|etc|home)\b", node.value)
    ):
        yield f"names {node.value}"
    if isinstance(node, ast.Call):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function == "open" or (function in TEXT and isinstance(node.func, ast.Attribute)):
            yield from _text_complaints(node, function)
        if function in ("Path", "open") or (function == "join" and ast.unparse(node.func) == "os.path.join"):
            yield from (f"joins a path with /: {ast.unparse(a)}" for a in node.args if _joined_with_a_slash(a))


def _text_complaints(call, function):
    """open(), Path.open(), read_text() and write_text(): a locale's encoding and newlines are not wanted."""
    of_a_path = isinstance(call.func, ast.Attribute)
    if function == "open" and of_a_path and ast.unparse(call.func.value) in ("Image", "os", "cls", "RunDir"):
        return
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    position = 0 if of_a_path else 1
    mode = given.get("mode", call.args[position] if len(call.args) > position and function == "open" else None)
    mode = mode.value if isinstance(mode, ast.Constant) else "w" if function == "write_text" else "r"
    if "b" in mode:
        return
    if "encoding" not in given:
        yield f"{function} without encoding"
    if set(mode) & set("wax") and "newline" not in given:
        yield f"{function} for writing without newline"


def _joined_with_a_slash(node):
    if isinstance(node, ast.JoinedStr):
        return any(isinstance(part, ast.Constant) and re.search(r"[^:/]/|^/", part.value) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [part for part in (node.left, node.right) if isinstance(part, ast.Constant)]
        return any(isinstance(part.value, str) and "/" in part.value for part in parts)
    return False


# What is only looked at where it is there: a test below takes it away.
OPTIONAL = {
    "booth/common/host_memory.py": ("imports resource", "names /proc"),
    "jaxbooth/hosts.py": ("names /dev", "names /dev/vfio"),  # a folder without TPU chips, where it is not there
}


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_source(file):
    optional = OPTIONAL.get(file.relative_to(ROOT).as_posix(), ("nothing",))
    assert [line for line in complaints(file.read_text(encoding="utf-8")) if not line.endswith(optional)] == []


def test_a_system_that_does_not_say_its_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(host_memory, "_PROC", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert host_memory.available() is None
    host_memory.require(2**60, "a file")


@pytest.mark.parametrize(
    ("code", "said"),
    [("import fcntl", "imports fcntl"),
     ("from resource import getrusage", "imports resource"),
     ("from os import fork", "imports os.fork"),
     ("os.geteuid()", "uses os.geteuid"),
     ("process.send_signal(signal.SIGKILL)", "uses signal.SIGKILL"),
     ("link.symlink_to(target)", "uses link.symlink_to"),
     ("folder = '/tmp/cache'", "names /tmp/cache"),
     ("open(name)", "open without encoding"),
     ("path.open('a', encoding='utf-8')", "open for writing without newline"),
     ("path.read_text()", "read_text without encoding"),
     ("path.write_text(text, encoding='utf-8')", "write_text for writing without newline"),
     ("Path(f'{folder}/{name}')", "joins a path with /: f'{folder}/{name}'"),
     ("open(folder + '/name', 'rb')", "joins a path with /: folder + '/name'")],
)  # fmt: skip
def test_what_the_look_at_the_source_sees(code, said):
    assert complaints(code) == [f"line 1: {said}"]


@pytest.mark.parametrize("code", [
    "path.open('rb')", "open(name, 'wb')", "Image.open(path)", "path.write_text(text, encoding='utf-8', newline='\\n')",
    "path.open(encoding='utf-8')", "url = f'https://{host}/{name}'", "Path(folder) / name", "os.replace(old, new)",
])  # fmt: skip
def test_what_it_lets_pass(code):
    assert complaints(code) == []


def test_the_look_at_the_source_sees_all_of_it():
    assert len(SOURCES) > 40 and {file.parent.name for file in SOURCES} >= {*PACKAGES, "models"}


def allowed_on_windows(name):
    device = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)
    return not (device or re.search(r'[<>:"|?*\\\x00-\x1f]', name) or name.endswith((".", " ")))


def test_names_in_the_project():
    """They can be checked out on a disk that does not tell capitals apart."""
    folders = [*PACKAGES, "configs", "docs", "scripts", "tests"]
    paths = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*")]
    paths = [path for path in paths if "__pycache__" not in path]
    assert all(allowed_on_windows(part) for path in paths for part in path.split("/"))
    assert len({path.lower() for path in paths}) == len(paths) > 80
    assert not any(map(allowed_on_windows, ("aux.py", "a:b", "what?", "dot.", "Con", "step\n")))


@pytest.fixture
def windows(monkeypatch):
    """Windows' habits: folders cannot be opened, and what is open is neither renamed nor removed, nor its folders."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("open files cannot be listed here")
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    os_open, os_replace, unlink, rmtree = os.open, os.replace, os.unlink, shutil.rmtree

    def held(path):
        prefix, links = os.fspath(Path(path).absolute()), []
        for descriptor in Path("/proc/self/fd").iterdir():
            try:
                links.append(os.fspath(descriptor.readlink()))
            except OSError:  # the one that lists them
                continue
        mapped = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
        return [name for name in links + mapped if name == prefix or name.startswith(prefix + "/")]

    def refusing(act):
        def wrapped(*paths, **options):
            if "dir_fd" not in options:  # rmtree's own steps
                for path in paths[:2]:
                    if ".filelock-" in str(path):
                        continue  # how that package looks what this system's locks can do; on Windows it need not
                    if isinstance(path, str | Path) and (names := held(path)):
                        raise PermissionError(13, f"open: {names}", str(path))
            return act(*paths, **options)

        return wrapped

    def open_file(path, *arguments, **options):
        if "dir_fd" not in options and Path(path).is_dir():
            raise PermissionError(13, "a folder", str(path))
        return os_open(path, *arguments, **options)

    def remove_tree(path, *arguments, **options):
        if names := held(path):
            raise PermissionError(13, f"open: {names}", str(path))
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", os_open)
            rmtree(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "replace", refusing(os_replace))
    monkeypatch.setattr(os, "rename", refusing(os.rename))
    monkeypatch.setattr(os, "unlink", refusing(unlink))
    monkeypatch.setattr(shutil, "rmtree", remove_tree)


def test_what_is_open_stays(windows, tmp_path):
    (tmp_path / "folder").mkdir()
    with (tmp_path / "folder" / "file").open("w", encoding="utf-8"):
        for refused in (lambda: rename(tmp_path / "folder", tmp_path / "other"), lambda: remove(tmp_path / "folder")):
            with pytest.raises(PermissionError, match="open: "):
                refused()
    rename(tmp_path / "folder", tmp_path / "other")
    with publish(tmp_path / "folder") as staging:
        staging.mkdir()
        (staging / "file").touch()
    remove(tmp_path / "other")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "file"]


def test_a_virus_scanner_is_waited_for(monkeypatch, tmp_path):
    """It opens a new file for a moment; a run of hours must not end with that."""
    busy, waited, replace = [3], [], os.replace

    def scanned(old, new):
        if busy[0]:
            busy[0] -= 1
            raise PermissionError(13, "open in another process")
        replace(old, new)

    monkeypatch.setattr(os, "replace", scanned)
    monkeypatch.setattr(files.time, "sleep", waited.append)
    (tmp_path / "new").touch()
    with pytest.raises(PermissionError):  # elsewhere that is no matter of time
        rename(tmp_path / "new", tmp_path / "name")
    monkeypatch.setattr(files, "WINDOWS", True)
    busy[0] = 3
    rename(tmp_path / "new", tmp_path / "name")
    assert (tmp_path / "name").exists() and len(waited) == 3 and sum(waited) < 5
    busy[0] = 100
    with pytest.raises(PermissionError):
        rename(tmp_path / "name", tmp_path / "new")


def test_a_whole_run(windows, tiny_config, tmp_path):
    """Trained, resumed, checkpoints rotated, the pipeline replaced: this process holds nothing that is in the way."""
    from torchbooth.backend import Backend

    config = tiny_config
    config.checkpoint.every_steps, config.checkpoint.keep = 1, 1
    config.train.steps = 2
    train(Backend, config, tmp_path / "run")
    config.train.steps = 3
    run = train(Backend, config, tmp_path / "run")  # resumes from step 2 and deletes its checkpoint
    assert [line["step"] for line in run.metrics] == [1, 2, 3]
    checkpoints = run.path / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-000003"]
    train(Backend, config, tmp_path / "run", from_step=3)
    paths = [path.relative_to(tmp_path) for path in run.path.rglob("*")]
    assert all(allowed_on_windows(part) for path in paths for part in path.parts)
    assert max(len(str(PureWindowsPath(path))) for path in paths) < 160, "260 with the folder it lies in"
    texts = [path for path in run.path.rglob("*") if path.suffix in (".json", ".jsonl", ".txt")]
    assert len(texts) > 8 and not any(b"\r" in path.read_bytes() for path in texts)
