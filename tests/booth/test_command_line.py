"""How a command line is read: settings as NAME=VALUE, bare config names, and the short form of train and doctor."""

import pytest

from booth.commands import cli, subject
from booth.commands.parsing import parse
from booth.common.errors import UserError
from booth.config import load_config
from booth.models.embedded import subject_path

SHORT = ("train", "photos", "--subject", "sks dog", "--model", "owner/name")


def read(*arguments, package="torchbooth"):
    return parse(cli.build_parser(package), [*map(str, arguments)])


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("command", ["train", "plan", "doctor"])
def test_both_ways_to_give_a_setting(command):
    options = read(command, "--config", "x.py", "train.steps=3", "--config.instance.prompt=a=b")
    assert options.overrides == [("train.steps", "3"), ("instance.prompt", "a=b")]
    assert "train.steps must be written train.steps=VALUE" in refusal(read, command, "--config", "x.py", "train.steps")


def test_what_is_no_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read("train", "--config", "x.py", "--workdir", "train.steps=3").overrides == [], "the value of an option"
    assert read("train", "a/b=c", "--config", "x.py").photos == "a/b=c"
    (tmp_path / "dog=1").mkdir()
    assert read("train", "dog=1", "--config", "x.py").photos == "dog=1"
    assert "did you mean 'train.steps'?" in refusal(load_config, "", read("train", "train.step=1").overrides)


def test_photos_may_come_last():
    assert read("train", "--model", "m", "train.steps=3", "photos").photos == "photos"


def test_a_config_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("sd15_lora").adapter.kind == "lora"
    assert "no config that comes with booth; those are demo, gpu_12gb" in refusal(load_config, "sd15_lori")
    assert "or sd15_lora, which comes with booth" in refusal(load_config, "configs/sd15_lora.py")


@pytest.mark.parametrize(
    ("given", "prompt", "of_class"),
    [("sks dog", "a photo of sks dog", "a photo of dog"),
     ("a sks robot", "a photo of a sks robot", "a photo of a robot"),
     ("A zwx old  mug", "a photo of A zwx old mug", "a photo of an old mug"),
     ("the sks dog", "a photo of the sks dog", "a photo of the dog")],
)  # fmt: skip
def test_prompts_of_a_subject(given, prompt, of_class):
    _, found = subject.short_form("torchbooth", read(*SHORT[:3], given, *SHORT[4:]))
    assert dict(found)["instance.prompt"] == prompt and dict(found)["prior.prompt"] == of_class


def test_the_short_form():
    base, found = subject.short_form("torchbooth", read(*SHORT))
    config = load_config(base, found)
    assert (config.instance.images, config.model.source) == ("photos", "owner/name")
    assert {config.train.steps, config.train.learning_rate, config.prior.count} == {"auto"}
    assert config.memory.fit == "auto"
    assert "memory.fit" not in dict(subject.short_form("jaxbooth", read(*SHORT))[1]), "torchbooth alone has it"
    assert subject.workdir(read(*SHORT)) == "runs/sks-dog"
    assert load_config(*subject.short_form("torchbooth", read(*SHORT, "--config", "sd15_lora"))).train.steps == 800, (
        "the config's"
    )


def test_the_embedded_base_has_numbers_of_its_own():
    base, found = subject.short_form(
        "torchbooth", read("train", "example:mug", "--subject", "a sks mug", "--model", "embedded")
    )
    config = load_config(base, found)
    assert config.data.resolution == 64 and config.samples.prompts == ()
    assert config.instance.images == str(subject_path("mug"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["train"], "neither photos nor a config"),
     (["train", "photos"], "--model is missing"),
     (["train", "photos", "--model", "m"], "--subject is missing"),
     (["train", "photos", "--model", "m", "--subject", "dog"], "--subject 'dog' must be a rare word and what"),
     (["train", "example:cat", "--model", "m", "--subject", "sks cat"], "take one of bird, mug, robot")],
)  # fmt: skip
def test_what_does_not_say_enough(arguments, said):
    assert said in refusal(lambda: subject.short_form("torchbooth", read(*arguments)))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell, capsys):
    assert cli.main("torchbooth", ["completion", shell]) == 0
    said = capsys.readouterr().out
    assert "accept-changes" in said and "convert" in said


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main("jaxbooth", ["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("jaxbooth ")
