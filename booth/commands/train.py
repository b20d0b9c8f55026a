"""The command `train`: tune a pipeline on photos; the same command again resumes the run."""

import argparse
import logging
from typing import Any

from booth.commands import push, training
from booth.commands.options import add_hosts, add_verify, join_hosts, path
from booth.commands.settings import add_short_form, read_short_form
from booth.commands.subject import workdir
from booth.common.disk_space import readable
from booth.common.errors import UserError
from booth.diffusion.backend import Backend, load_backend
from booth.models.adapters import adapter_of
from booth.train.checks import checked
from booth.train.run_record import pinned_revision
from booth.train.trained_run import open_configured

log = logging.getLogger("booth")


def add_parser(commands: Any, package: str) -> None:
    parser = commands.add_parser("train", help="tune a pipeline on photos; the same command again resumes")
    add_short_form(parser)
    parser.add_argument("--workdir", type=path, help="the run folder; default with PHOTOS: runs/ and the subject")
    parser.add_argument("--from-step", type=int, help="continue from this checkpoint instead of the newest")
    parser.add_argument(
        "--accept-changes", action="store_true", help="let a resumed run have other steps or rates than it began with"
    )
    add_verify(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the resolved config, stop")
    parser.add_argument("--push-to-hub", default="", metavar="OWNER/NAME", help="push the finished run, as `push` does")
    push.add_options(parser)
    add_hosts(parser, package)
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Train or resume a run; with --dry-run check everything instead. Raise UserError for what the user can fix."""
    folder: str = options.workdir or workdir(options)
    config = read_short_form(package, options, folder)
    if folder and not options.workdir:
        log.info("--workdir %s", folder)
    if not options.dry_run and not folder:
        raise UserError("--workdir is missing; give a folder for the run")
    push_to = push.destination(options, options.push_to_hub, "--push-to-hub")
    backend_class = load_backend(package)
    if options.verify:
        revision = pinned_revision(folder, config) if folder else config.model.revision
        open_configured(config, revision, weights=False).verify()
    if options.dry_run:
        _check(backend_class, config, folder, push_to)
        return
    join_hosts(package, options)
    meant = None if options.accept_changes else [name for name, _ in options.overrides]
    training.train(package, config, folder, options.from_step, meant, push_to)


def _check(backend_class: type[Backend], config: Any, workdir: str, push_to: push.Destination | None) -> None:
    """Check everything that can be checked without training, and print the config with all chosen values."""
    config, inputs = checked(backend_class, config, workdir)
    if push_to:
        push_to.check()
    model = inputs.pipeline.model
    if model and (files := inputs.pipeline.to_download):
        log.info("a run would download %d files, %s", len(files), readable(model.size(files)))
    else:
        adapter_of(config, inputs.pipeline)
    print(config.to_json_best_effort(indent=1))
