"""Commands in pages of docs/, run as they are written but for a tiny model and few steps.

A block that begins with ```bash is one command that a test runs. A block with ```sh needs other hardware, several
processes, the real hub, or another program, and is not run.
"""

import re
import shlex

OURS = ("python -m ", "torchbooth ", "jaxbooth ")


def blocks(page):
    """The bash blocks of a page."""
    return re.findall(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def commands(page):
    """Those that are ours, in words."""
    return [shlex.split(block.replace("\\\n", " ")) for block in blocks(page) if block.startswith(OURS)]


def unrun(page):
    """The commands of ours that are written in `sh` blocks, each in one line."""
    shell = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    lines = "".join(shell).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if re.search(r"\b(torch|jax)booth\b", line)]


def parts(words):
    """(package, command, arguments)."""
    package, command = words[2].split(".") if words[0] == "python" else words[:2]
    return package, command, words[3 if words[0] == "python" else 2 :]


def fields(words):
    """Return {name: text} of the settings that a command gives, as `NAME=VALUE` or `--config.NAME=VALUE`."""
    return dict(re.findall(r"^(?:--config\.)?([a-z_0-9]+\.[\w.]+)=(.*)$", "\n".join(words), re.MULTILINE))


def smaller(words, pipeline, photos, networks=None):
    """The arguments of a command, with more so that it takes seconds; of two values the last counts.

    Of 200 steps one is left, so the checkpoints that a page names must be there.
    """
    command, given = parts(words)[1], fields(words)
    if command in ("train", "doctor", "plan"):
        values = {"model.source": pipeline, "data.resolution": 64}
        if command != "plan":
            values |= {"instance.images": photos}
        if command == "train":
            values |= {
                "prior.count": 2, "prior.inference_steps": 2, "prior.batch_size": 2, "data.encode_batch_size": 2,
                "samples.inference_steps": 2, "mesh.fsdp": 1, "checkpoint.every_steps": 1,
                "train.steps": int(given.get("train.steps", 800)) // 200,
            }  # fmt: skip
            values |= {name: 1 for name in ("samples.every_steps", "train.lr_warmup_steps") if name in given}
        if any("gpu_t4" in word for word in words):  # a CPU is refused float16
            values["train.precision"] = "fp32"
        if "jaxbooth.train" in words:  # of eight cores
            values["train.batch_size"] = 1
        more = [f"--config.{name}={value}" for name, value in values.items()]
    elif command == "evaluate":
        (networks / "settings.txt").write_text("a {} in the snow\na {} on the beach\n")
        named = {"dino": networks / "dino", "clip": networks / "clip", "settings": networks / "settings.txt",
                 "instance-images": 1, "class-images": 2}  # fmt: skip
        more = [f"--{name}={value}" for name, value in named.items()]
    else:
        more = {"sample": ["--steps=2", "--size=64"], "merge": [f"--from={pipeline}"]}.get(command, [])
        if command == "sample" and "stable-diffusion-v1-5/stable-diffusion-v1-5" in words:
            more.append(f"--model={pipeline}")
        if command == "export" and words[words.index("--out") - 1].endswith(
            ".safetensors"
        ):  # a single file -> a folder
            more.append(f"--model-config={pipeline}")
    steps = [f"{option}={int(words[words.index(option) + 1]) // 200}"
             for option in ("--from-step", "--step") if option in words]  # fmt: skip
    return [_divided(word) for word in parts(words)[2]] + more + steps


def _divided(word):
    """`checkpoint=200,400`, an axis of a grid, as `checkpoint=1,2`."""
    name, _, values = word.partition("=")
    return f"{name}={','.join(str(int(step) // 200) for step in values.split(','))}" if name == "checkpoint" else word
