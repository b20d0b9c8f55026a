"""One command line for both backends; `_parse` has the commands."""

import argparse
import importlib
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from booth.commands import evaluate, export, push, sample, training, xy_grid
from booth.commands.options import add_model, add_source, add_verify, check_of_run, open_model, path
from booth.common.disk_space import readable
from booth.common.errors import UserError
from booth.common.files import write_text
from booth.common.signals import Stopped, deafness_ends
from booth.config import foreign_flags
from booth.config import values as settings
from booth.config.auto import with_numbers
from booth.config.choices import SOLVERS
from booth.config.validation import validate_plan
from booth.data.doctor import advice
from booth.diffusion.backend import load_backend
from booth.models import lora_file
from booth.models.adapters import adapter_of
from booth.report import write
from booth.train.checks import checked
from booth.train.run_folder import locked
from booth.train.run_record import pinned_revision, read_record
from booth.train.trained_run import find_trained, open_configured

log = logging.getLogger("booth")

INTERRUPTED = 130  # as shells report Ctrl-C


def main(package: str, argv: Sequence[str] | None = None) -> int:
    """Runs a command of `jaxbooth` or `torchbooth`; returns the exit code. 2: something the user can mend."""
    _log_to_stderr()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with deafness_ends(package):
            options = _parse(package, arguments)
            options.run(package, options)
    except UserError as error:
        print(f"{package}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, a disk that is full or gone
        print(f"{package}: error: {error}; mend that and give the same command again", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{package}: {stopped}, which is saved; the same command continues", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print(
            f"\n{package}: interrupted; the same command continues, training from its last checkpoint", file=sys.stderr
        )
        return INTERRUPTED
    return 0


def _log_to_stderr() -> None:
    if not log.handlers:
        log.addHandler(_AboveProgress())
        log.setLevel(logging.INFO)
        log.propagate = False


class _AboveProgress(logging.Handler):
    """One line on stderr a message, above a progress bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(prefix + record.getMessage(), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; {self.prog} --help shows how it is used")


def _at_least(least: int) -> Callable[[str], int]:
    """A type of argument."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number, at least {least}")
        return int(text)

    return read


_OVERRIDE = re.compile(r"--config\.([\w.]+)(?:=(.*))?$", re.DOTALL)


def _parse(package: str, arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog=package, description="DreamBooth fine-tuning of Stable Diffusion")
    commands = parser.add_subparsers(
        required=True, metavar="train|sample|evaluate|export|merge|push|report|doctor|plan"
    )

    train = commands.add_parser(
        "train",
        help="photos -> tuned pipeline; the same command again resumes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="fields, each overridden with --config.NAME=VALUE:\n" + settings.describe(),
    )
    train.add_argument("--config", required=True, type=path, help=".py with get_config(), .yaml or .json")
    train.add_argument("--workdir", type=path, help="the run folder")
    train.add_argument("--from-step", type=int, help="continue from this checkpoint instead of the newest")
    train.add_argument(
        "--accept-changes", action="store_true", help="a resumed run may have other steps or rates than it began with"
    )
    add_verify(train)
    train.add_argument("--dry-run", action="store_true", help="check everything, print the resolved config, stop")
    train.add_argument("--push-to-hub", default="", metavar="OWNER/NAME", help="push the finished run, as `push` does")
    push.add_options(train)
    if package == "jaxbooth":
        group = train.add_argument_group("several hosts", "not needed on Cloud TPU and under srun")
        group.add_argument("--coordinator", metavar="HOST:PORT", help="of host 0; give the same command on each host")
        group.add_argument("--hosts", type=int, metavar="N", help="how many there are")
        group.add_argument("--host", type=int, metavar="K", help="which one this is, from 0; host 0 has the photos")
    train.set_defaults(run=_train, coordinator=None, hosts=None, host=None)

    sample = commands.add_parser("sample", help="prompts -> PNGs and a grid")
    add_source(sample)
    sample.add_argument("--prompt", action="append", default=[], help="may be given several times")
    sample.add_argument("--prompts", type=path, metavar="FILE", help="one a line; # begins a comment")
    sample.add_argument("--negative-prompt", help="what the images should not show")
    sample.add_argument("--solver", choices=SOLVERS, help="how the noise is removed; default: dpm++")
    sample.add_argument("--steps", type=int, help="denoising steps; default: 25")
    sample.add_argument("--guidance", type=float, help="classifier-free guidance scale; default: 7.5, 1 turns it off")
    sample.add_argument("--seeds", type=int, nargs="+", help="one image for every prompt and seed; default: 0")
    sample.add_argument("--size", help="512 or WIDTHxHEIGHT; default: the size the model was made for")
    sample.add_argument("--batch-size", default="4", help="images sampled at once; torchbooth: auto, as memory allows")
    for option, where in (("--x", "across"), ("--y", "down")):
        sample.add_argument(
            option, action="append", default=[], metavar="NAME=VALUE,...",
            help=f"a grid, xy.png, with these values {where}: {', '.join(xy_grid.AXES)} (prompts: between |)",
        )  # fmt: skip
    sample.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="compute type")
    sample.add_argument("--lora-weight", type=float, help="how much the LoRA of --run counts; default: 1")
    sample.add_argument("--out", required=True, type=path, help="folder for the images")
    sample.set_defaults(run=_sample)

    judge = commands.add_parser("evaluate", help="which checkpoint is the best: a score for each, and why")
    judged = judge.add_mutually_exclusive_group(required=True)
    judged.add_argument("--run", dest="run_dir", type=path, help="a run folder: all checkpoints that it has")
    judged.add_argument("--pictures", type=path, help="or a folder of pictures, to compare with --real")
    judge.add_argument("--real", type=path, help="folder of the subject's pictures; default: the photos of --run")
    judge.add_argument("--dino", type=path, default="", help="folder or cached hub id of DINO weights, for the subject")
    judge.add_argument("--clip", type=path, default="", help="the same of CLIP weights, for prompts (and the subject)")
    judge.add_argument("--prompt", default="", help="what shows the subject; default: the run's")
    judge.add_argument("--class-prompt", default="", help="what shows the class; default: the run's")
    judge.add_argument(
        "--settings", type=path, default="auto",
        help="prompts of the subject in settings: DreamBench's (objects, live), world, or a file, one a line with {}",
    )  # fmt: skip
    for option, least, default, what in (
        ("--instance-images", 1, 8, "pictures of the instance prompt"),
        ("--setting-images", 1, 1, "of each setting"),
        ("--class-images", 2, 16, "of the class prompt"),
        ("--batch-size", 1, 0, "images sampled at once; default: as for previews"),
    ):
        judge.add_argument(option, type=_at_least(least), default=default, metavar="N", help=what)
    judge.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="compute type")
    judge.set_defaults(run=evaluate.evaluate)

    write = commands.add_parser("export", help="checkpoint or model -> diffusers pipeline, single file, or LoRA file")
    exported = write.add_mutually_exclusive_group(required=True)
    exported.add_argument("--run", dest="run_dir", type=path, help="a run folder: its newest checkpoint, or --step")
    exported.add_argument(
        "--from", dest="model", type=path,
        help="a pipeline: folder, hub id, embedded, single file; or a LoRA file, to write it in another format",
    )  # fmt: skip
    add_model(write, "--from")
    write.add_argument("--step", type=int, help="checkpoint of --run")
    write.add_argument("--best", action="store_true", help="the checkpoint of --run that `evaluate` found best")
    write.add_argument(
        "--format", default="diffusers",
        choices=("diffusers", "single-file", *lora_file.FORMATS, *export.EMBEDDINGS),
        help="a pipeline folder; one checkpoint file for WebUIs; the LoRA alone, for diffusers (peft) or WebUIs"
        " (kohya); or new tokens alone, as diffusers and WebUIs read them (embedding) or in kohya's layout"
        " (emb_params)",
    )  # fmt: skip
    write.add_argument("--precision", choices=("source", "fp32", "fp16", "bf16"), default="source")
    write.add_argument("--out", required=True, type=path, help="folder of the pipeline, or NAME.safetensors")
    write.add_argument("--title", default="", help="of a file for WebUIs; default: its name")
    write.add_argument("--trigger-phrase", help="of a file for WebUIs; default: the prompt that --run trained with")
    write.set_defaults(run=export.export)

    merge = commands.add_parser("merge", help="pipeline and LoRA files -> diffusers pipeline folder")
    merge.add_argument("--from", dest="model", required=True, type=path, help="a pipeline: folder, hub id, embedded")
    add_model(merge, "--from")
    merge.add_argument("--lora", action="append", required=True, type=path, help="file; may be given several times")
    merge.add_argument("--weight", action="append", type=float, default=[], help="of each --lora, in order; default: 1")
    merge.add_argument("--precision", choices=("source", "fp32", "fp16", "bf16"), default="source")
    merge.add_argument("--out", required=True, type=path, help="folder of the pipeline")
    merge.set_defaults(run=export.merge)
    push.add_command(commands.add_parser("push", help="a finished run -> the Hugging Face hub"))
    look = commands.add_parser("report", help="RUN/report.html: what a run has made so far, to look at")
    look.add_argument("run_dir", metavar="RUN", type=path, help="the run folder, of either backend")
    look.set_defaults(run=_report)

    if package == "torchbooth":
        convert = commands.add_parser("convert", help="checkpoint that is a pickle (.ckpt, .pt, .bin) -> safetensors")
        convert.add_argument("file", type=path, help="the checkpoint")
        convert.add_argument("--out", required=True, type=path, help="NAME.safetensors")
        convert.set_defaults(run=export.convert)

    doctor = commands.add_parser("doctor", help="advice about photos and prompts, without training")
    doctor.add_argument("--config", required=True, type=path, help=".py with get_config(), .yaml or .json")
    doctor.set_defaults(run=_doctor)

    hardware = "TPU" if package == "jaxbooth" else "GPU"
    plan = commands.add_parser("plan", help=f"what a run would need on a {hardware}, without one")
    plan.add_argument("--config", required=True, type=path, help=".py with get_config(), .yaml or .json")
    if package == "jaxbooth":
        plan.add_argument("--topology", help="a TPU slice such as v3:2x2 or v5e:2x4; default: mesh.topology")
        plan.add_argument("--find-batch", action="store_true", help="also the largest train.batch_size that fits")
    else:
        plan.add_argument("--gpu", help="a card's memory such as 8GB: chooses techniques, as memory.fit does")
    plan.add_argument("--json", type=path, help="file for the figures")
    plan.set_defaults(run=_plan)

    overrides = [match for argument in arguments if (match := _OVERRIDE.match(argument))]
    for override in overrides:
        if override[2] is None:
            raise UserError(f"{override[0]} must be written {override[0]}=VALUE")
    others = [argument for argument in arguments if not _OVERRIDE.match(argument)]
    command = commands.choices.get(others[0]) if others else None
    try:
        options, unknown = parser.parse_known_args(others)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(unknown[0], command)}")
    except UserError:
        if others and others[0] in ("train", "plan", "doctor") and command:
            for argument in others[1:]:
                known = argument.partition("=")[0] in command._option_string_actions
                if not known and (answer := foreign_flags.answer(argument)):
                    raise UserError(answer) from None
        raise
    if overrides and options.run not in (_train, _plan, _doctor):
        raise UserError(f"{overrides[0][0]} belongs to train, doctor and plan; leave it out")
    options.overrides = [(match[1], match[2]) for match in overrides]
    return options


def _meant(unknown: str, command: argparse.ArgumentParser | None) -> str:
    """What an unknown option may mean: one of ours with - for _, or a field without --config."""
    option, name = unknown.partition("=")[0].replace("_", "-"), unknown.removeprefix("--").partition("=")[0]
    if command is None or not unknown.startswith("--"):
        return ""
    if option in command._option_string_actions:
        return f"; did you mean {option}?"
    fields = settings.similar(name.replace("-", "_")) if "--config" in command._option_string_actions else []
    return f"; fields are given as {' or '.join(f'--config.{field}=VALUE' for field in fields)}" if fields else ""


def _train(package: str, options: argparse.Namespace) -> None:
    config = settings.resolved(settings.load_config(options.config, options.overrides))
    if not options.dry_run and not options.workdir:
        raise UserError("--workdir is missing; give the folder the run is to live in")
    push_to = push.destination(options, options.push_to_hub, "--push-to-hub")
    backend_class = load_backend(package)
    if options.verify:
        revision = pinned_revision(options.workdir, config) if options.workdir else config.model.revision
        open_configured(config, revision, weights=False).verify()
    if options.dry_run:
        config, inputs = checked(backend_class, config, options.workdir)
        if push_to:
            push_to.check()
        model = inputs.pipeline.model
        if model and (files := inputs.pipeline.to_download):
            log.info("a run would download %d files, %s", len(files), readable(model.size(files)))
        else:
            adapter_of(config, inputs.pipeline)
        print(config.to_json_best_effort(indent=1))
        return
    named = (options.coordinator, options.hosts, options.host)
    if any(value is not None for value in named):
        if None in named:
            raise UserError("--coordinator, --hosts and --host go together; give all three, on each host")
        importlib.import_module(f"{package}.hosts").start(*named)
    meant = None if options.accept_changes else [name for name, _ in options.overrides]
    training.train(package, config, options.workdir, options.from_step, meant, push_to)


def _report(package: str, options: argparse.Namespace) -> None:
    folder = Path(options.run_dir)
    read_record(folder)  # nothing is written into another folder, not even a lock
    with locked(folder):
        log.info("written: %s", write.write(folder))


def _doctor(package: str, options: argparse.Namespace) -> None:
    config = settings.resolved(settings.load_config(options.config, options.overrides))
    backend_class = load_backend(package)
    config, inputs = checked(backend_class, config, None)
    lines = list(advice(config, inputs))
    for line in lines:
        print(line)
    if not lines:
        print(f"{len(inputs.instances)} photos: nothing to say against them")


def _plan(package: str, options: argparse.Namespace) -> None:
    config = settings.resolved(settings.load_config(options.config, options.overrides))
    backend_class = load_backend(package)
    validate_plan(config, backend_class.name)
    config = with_numbers(config, photos=5)  # how many there are hardly matters to memory
    pipeline = open_configured(config, config.model.revision, weights=False)
    chosen = (options.gpu,) if package == "torchbooth" else (options.topology, options.find_batch)
    plans = importlib.import_module(f"{package}.plan").run(config, pipeline, *chosen)
    if options.json:
        write_text(Path(options.json), json.dumps(plans, indent=1) + "\n")


def _sample(package: str, options: argparse.Namespace) -> None:
    asked = sample.read_options(options)
    backend_class = load_backend(package)
    check_of_run(options, "--model")
    trained = find_trained(backend_class, options.run_dir, options.step, options.precision) if options.run_dir else None
    pipeline = trained.pipeline if trained else open_model(options)
    if options.verify:
        pipeline.verify()
    sample.run(backend_class, options, asked, pipeline, trained)
