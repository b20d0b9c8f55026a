"""The command `merge`: merge LoRA files into a pipeline and write the result as a pipeline folder."""

import argparse
import logging
from pathlib import Path
from typing import Any

from booth.commands.options import add_model, open_model, path
from booth.common import disk_space
from booth.models import export_folder, lora_file, lora_merge

log = logging.getLogger("booth")


def add_parser(commands: Any, package: str) -> None:
    parser = commands.add_parser("merge", help="merge LoRA files into a pipeline, as a diffusers pipeline folder")
    parser.add_argument("--from", dest="model", required=True, type=path, help="a pipeline: folder, hub id or embedded")
    add_model(parser, "--from")
    parser.add_argument(
        "--lora", action="append", required=True, type=path, help="a LoRA file; may be given several times"
    )
    parser.add_argument(
        "--weight", action="append", type=float, default=[], help="weight of each --lora, in order; default: 1"
    )
    parser.add_argument("--precision", choices=("source", "fp32", "fp16", "bf16"), default="source")
    parser.add_argument("--out", required=True, type=path, help="folder of the pipeline")
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Write the merged pipeline to --out. Raise UserError if a LoRA does not fit the pipeline or --out is in use."""
    paths, out = list(map(Path, options.lora)), Path(options.out)
    weights = lora_merge.weights_of(paths, options.weight)
    loras = [lora_file.read_lora(path) for path in paths]
    pipeline = open_model(options)
    export_folder.check_target(pipeline, out)
    if options.verify:
        pipeline.verify()
    for lora in loras:
        lora_merge.check_fits(pipeline, lora)
    size = export_folder.export_size(pipeline, options.precision, pipeline.family.trainable)
    disk_space.require([disk_space.Need("the pipeline", out, size)], "make room, or merge to another disk")
    tensors = lora_merge.merged(pipeline, loras, weights)
    export_folder.export(pipeline, out, tensors, options.precision, merged=lora_merge.record(loras, weights))
    log.info("%s with %s written to %s", options.model, ", ".join(options.lora), out)
