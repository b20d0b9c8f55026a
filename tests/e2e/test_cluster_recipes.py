"""docs/guide/cluster-recipes.md: the commands for several machines, each run by several processes on this one."""

import os
import re
import shlex
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from page_commands import smaller
from waiting import PATIENCE_S

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "cluster-recipes.md").read_text(encoding="utf-8")

# Takes the place of SLURM's: starts the tasks of a step on this machine, as many as STAND_IN_TASKS says.
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
count = int(os.environ["STAND_IN_TASKS"])
same = {{"SLURM_STEP_NUM_TASKS": str(count), "SLURM_NTASKS": str(count), "SLURM_STEP_NUM_NODES": str(count),
        "SLURM_STEP_NODELIST": "localhost"}}
tasks = [subprocess.Popen(sys.argv[1:], env={{**os.environ, **same, "SLURM_PROCID": str(k), "SLURM_LOCALID": "0"}})
         for k in range(count)]
sys.exit(max(task.wait() for task in tasks))
"""


def block(heading, number=0):
    """Return the command block of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```(?:sh|yaml)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[number]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def small(tiny_pipeline, photos, tmp_path):
    """Returns the words of a command with a tiny model, one process for each machine, and this machine's name."""

    def small(command, **replaced):
        words = shlex.split(command.replace("\\\n", " "))
        module = next(word for word in words if word.endswith("booth.train"))
        start, arguments = words[: words.index(module)], words[words.index(module) + 1 :]
        arguments = smaller(["python", "-m", module, *arguments], tiny_pipeline, photos)
        arguments += ["--workdir", str(tmp_path / "run"), "--config.train.batch_size=2"]
        # The card's techniques need a card; what is tested is how the processes find each other.
        arguments += ["--config.train.optimizer=adamw", "--config.train.precision=fp32", "--config.memory.fit="]
        start = [{"--multi_gpu": "--cpu", "10.0.0.2": "localhost", **replaced}.get(word, word) for word in start]
        return [*start, module, *arguments]

    return small


@pytest.fixture
def environment(tmp_path):
    """The environment in which programs of this project are found, and a stand-in for srun."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "scontrol").write_text("#!/bin/sh\necho localhost\n")
    for program in programs.iterdir():
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    return os.environ | slurm | {"PATH": path, "OMP_NUM_THREADS": "1"}


def assert_trained(tmp_path):
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()


def finish(processes):
    try:
        codes = [process.wait(timeout=PATIENCE_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * len(processes)


@pytest.mark.full
def test_torchrun_on_two_machines(small, environment, tmp_path):
    replaced = {"4": "1", "29500": free_port()}
    commands = [small(block("torchrun on two machines"), **replaced, **{"0": rank}) for rank in ("0", "1")]
    assert commands[0] != commands[1]
    finish([subprocess.Popen(command, env=environment, cwd=tmp_path) for command in commands])
    assert_trained(tmp_path)


@pytest.mark.full
def test_accelerate(small, environment, tmp_path):
    command = small(block("accelerate"), **{"4": "2"})
    finish([subprocess.Popen([*command[:2], "--main_process_port", free_port(), *command[2:]],
                             env=environment, cwd=tmp_path)])  # fmt: skip
    assert_trained(tmp_path)


@pytest.mark.full
@pytest.mark.parametrize(("number", "tasks"), [(0, "2"), (1, "1")])
def test_slurm(small, environment, tmp_path, number, tasks):
    script, _, command = block("SLURM", number).rpartition("srun ")
    words = small(f"srun {command}", **{"4": "2", "python": sys.executable})
    quoted = " ".join(word if "$" in word else shlex.quote(word) for word in words).replace(":29500", f":{free_port()}")
    (tmp_path / "batch.sh").write_text(f"{script}\n{quoted}\n")
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "STAND_IN_TASKS": tasks}
    finish([subprocess.Popen(["bash", "batch.sh"], env=environment | devices, cwd=tmp_path)])
    assert_trained(tmp_path)


def test_the_jobset_is_yaml_with_our_command():
    spec = yaml.safe_load(block("GKE JobSet"))["spec"]
    (job,) = spec["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "jaxbooth.train"]
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 4
    assert spec["failurePolicy"]["maxRestarts"] > 0


def test_every_recipe_gives_settings_that_exist():
    from booth.config.fields import FIELDS

    names = {field.name for field in FIELDS}
    sections = "|".join(sorted({name.partition(".")[0] for name in names if "." in name}))
    named = set(re.findall(rf"(?<![\w/.-])(?:{sections})\.[a-z_]+(?==)", PAGE))
    assert len(named) > 5 and named <= names
