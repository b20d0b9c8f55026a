"""The options of all commands that take a config: --config, its short form, and settings as NAME=VALUE."""

import argparse
import logging

from ml_collections import ConfigDict

from booth.commands.options import path
from booth.commands.subject import EXAMPLE, short_form
from booth.config.loading import configs, load_config
from booth.config.values import resolved, set_field
from booth.models.modelspec import native_resolution
from booth.train.run_record import pinned_revision
from booth.train.trained_run import open_configured

log = logging.getLogger("booth")


def add_config(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add --config, and a note to the help that says how settings are given."""
    parser.add_argument(
        "--config", required=required, type=path,
        help="a .py, .yaml or .json file, or, without a suffix, the name of a config that comes with booth:"
        f" {', '.join(configs())}",
    )  # fmt: skip
    parser.epilog = (
        f"NAME=VALUE (or --config.NAME=VALUE) changes a setting; `{parser.prog.split()[0]} fields` lists them."
        " An argument with a slash before the = is a path."
    )


def add_short_form(parser: argparse.ArgumentParser) -> None:
    """Add --config, and the short form that replaces it: photos, --subject and --model."""
    parser.add_argument(
        "photos", nargs="?", type=path, metavar="PHOTOS",
        help=f"folder of the subject's photos, or a dataset (instance.images); {EXAMPLE}robot, {EXAMPLE}mug and"
        f" {EXAMPLE}bird come with booth",
    )  # fmt: skip
    parser.add_argument(
        "--subject", metavar="'WORD NOUN'",
        help="a rare word and what the subject is, such as 'sks dog': the prompts become 'a photo of sks dog' and, for"
        " the class, 'a photo of dog'",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=path, metavar="ID",
        help="the model to train (model.source): hub id, folder, single file, or embedded, which comes with booth",
    )  # fmt: skip
    add_config(parser, required=False)


def read_config(options: argparse.Namespace) -> ConfigDict:
    """Return the config of --config with the given settings and absolute paths. Raise UserError if that fails."""
    return resolved(load_config(options.config, options.overrides))


def read_short_form(package: str, options: argparse.Namespace, workdir: str) -> ConfigDict:
    """Return the config of --config, or of the short form with photos, --subject and --model, with absolute paths.

    With the defaults of the short form, data.resolution becomes the size that the model was made for. `workdir` is the
    run folder, or "" if there is none. Raise UserError if the config or the model cannot be read.
    """
    base, derived = short_form(package, options)
    config = resolved(load_config(base, [*derived, *options.overrides]))
    if not base and "data.resolution" not in {name for name, _ in options.overrides}:
        revision = pinned_revision(workdir, config) if workdir else config.model.revision
        pipeline = open_configured(config, revision, weights=False)
        side = native_resolution({name: pipeline.component_config(name) for name in ("unet", "vae")})
        if side:
            set_field(config, "data.resolution", side)
            log.info("data.resolution=%d: what the model was made for", side)
    return config
