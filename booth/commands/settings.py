"""What the commands that are given a config have in common: --config, and settings as NAME=VALUE."""

import argparse

from ml_collections import ConfigDict

from booth.commands.options import path
from booth.config.loading import configs, load_config
from booth.config.values import resolved


def add_config(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add --config and say how settings are given."""
    parser.add_argument(
        "--config", required=required, type=path,
        help="a .py, .yaml or .json file, or, without a suffix, the name of a config that comes with booth:"
        f" {', '.join(configs())}",
    )  # fmt: skip
    parser.epilog = (
        f"NAME=VALUE (or --config.NAME=VALUE) changes a setting; `{parser.prog.split()[0]} fields` lists them."
        " What has a slash before the = is a path."
    )


def read_config(options: argparse.Namespace) -> ConfigDict:
    """Return the config that --config names, with the given settings, its paths absolute."""
    return resolved(load_config(options.config, options.overrides))
