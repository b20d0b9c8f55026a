"""Read the commands in pages of docs/, and change them so that they run with a tiny model and few steps.

A block that begins with ```bash is one command, and a test runs it. A block that begins with ```sh is not run: it needs
other hardware, several processes, the real hub, or another program.
"""

import re
import shlex

OURS = ("python -m ", "torchbooth ", "jaxbooth ")


def blocks(page):
    """Return the bash blocks of a page."""
    return re.findall(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def commands(page):
    """Return the commands of this project in a page, each as a list of words."""
    return [shlex.split(block.replace("\\\n", " ")) for block in blocks(page) if block.startswith(OURS)]


def unrun(page):
    """Return the commands of this project in the `sh` blocks of a page, each as one line."""
    shell = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    lines = "".join(shell).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if re.search(r"\b(torch|jax)booth\b", line)]


def parts(words):
    """Return (package, command, arguments) of a command in words."""
    package, command = words[2].split(".") if words[0] == "python" else words[:2]
    return package, command, words[3 if words[0] == "python" else 2 :]


def fields(words):
    """Return {name: text} of the settings that a command gives, as `NAME=VALUE` or `--config.NAME=VALUE`."""
    return dict(re.findall(r"^(?:--config\.)?([a-z_0-9]+\.[\w.]+)=(.*)$", "\n".join(words), re.MULTILINE))


def smaller(words, pipeline, photos, networks=None):
    """Return the arguments of a command, with others added so that it takes only seconds; the last value of two counts.

    Numbers of training steps are divided by 200, also those of checkpoints that a page names.
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
        if any("gpu_t4" in word for word in words):  # float16 is refused on a CPU
            values["train.precision"] = "fp32"
        if "jaxbooth.train" in words:  # the page has a batch for eight cores
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
        # An export whose source is a single file.
        if command == "export" and words[words.index("--out") - 1].endswith(".safetensors"):
            more.append(f"--model-config={pipeline}")
    steps = [f"{option}={int(words[words.index(option) + 1]) // 200}"
             for option in ("--from-step", "--step") if option in words]  # fmt: skip
    return [_divided(word) for word in parts(words)[2]] + more + steps


def _divided(word):
    """Return `checkpoint=1,2` for `checkpoint=200,400`, an axis of a grid; return other words as they are."""
    name, _, values = word.partition("=")
    return f"{name}={','.join(str(int(step) // 200) for step in values.split(','))}" if name == "checkpoint" else word
