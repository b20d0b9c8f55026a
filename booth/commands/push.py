"""The command `push`, and `train --push-to-hub`: upload a finished run to the Hugging Face hub.

A push always uploads the exported pipeline or the LoRA file, files of new tokens, the newest preview and a model card.
It uploads photos, and pictures that show photos, only if the user asks for it. It never uploads caches, checkpoints,
class images, or records with paths of this machine.
"""

import argparse
import logging
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from booth.commands.options import path
from booth.common.disk_space import readable
from booth.common.errors import UserError
from booth.config.sources import MODEL, of_page
from booth.data import pictures
from booth.models import lora_file
from booth.models.export_folder import RECORD, exported_step
from booth.report import hub_repository
from booth.report.data import Report, gather
from booth.report.model_card import Shown, card, mark
from booth.train.run_folder import locked
from booth.train.run_record import read_record

log = logging.getLogger("booth")

IMAGES, PHOTOS, TOKENS = "images", "photos", "tokens"  # folders in the repository
_PHOTO = ((1024, 1024), 2_000_000)  # pixels and bytes, at most
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Destination:
    """Where a run is pushed to, and how."""

    repository: str  # owner/name
    license: str = ""  # the hub's identifier of the license
    public: bool = False
    with_photos: bool = False
    replace: bool = False

    def check(self) -> None:
        """Raise UserError if the hub would refuse a push."""
        hub_repository.check_access(self.repository)

    def push(self, run: Path) -> str:
        """Push what a run has made and return the address of its page. Raise UserError if anything goes wrong."""
        run_id = read_record(run).run_id
        with locked(run):
            report = gather(run)
            files, shown = _gathered(report, self)
            files[hub_repository.CARD] = card(report, shown, run_id).encode()
            size = sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values())
            log.info("pushing %d files, %s, to %s", len(files), readable(size), self.repository)
            address = hub_repository.push(
                self.repository, files, mark(run_id), f"{report.package}: step {shown.step}",
                own_folders=(IMAGES, PHOTOS), public=self.public, replace=self.replace,
            )  # fmt: skip
        log.info("pushed to %s (%s)", address, "public" if self.public else "private")
        return address

    def push_finished(self, run: Path) -> None:
        """Push a run that has just finished. Raise UserError, which also says that the run itself is complete."""
        try:
            self.push(run)
        except UserError as error:
            options = [f"--license={self.license}"] if self.license else []
            options += [option for option, on in (("--public", self.public), ("--with-photos", self.with_photos),
                                                  ("--replace", self.replace)) if on]  # fmt: skip
            command = [f"{read_record(run).backend}booth", "push", "--run", str(run), "--to", self.repository, *options]
            raise UserError(
                f"the run is finished and complete in {run}, but was not pushed: {error}; to push it again:"
                f" {shlex.join(command)}"
            ) from error


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `push` and `train --push-to-hub` have in common."""
    group = parser.add_argument_group("pushing to the Hugging Face hub")
    group.add_argument(
        "--license", default="", help="the license, by the hub's identifier, such as creativeml-openrail-m"
    )
    group.add_argument("--public", action="store_true", help="make the repository public; without this it is private")
    group.add_argument(
        "--with-photos", action="store_true", help="also push the photos, and before_after.png, which shows some"
    )
    group.add_argument("--replace", action="store_true", help="delete all other files in the repository")


def destination(options: argparse.Namespace, repository: str, option: str) -> Destination | None:
    """Return where to push to, or None without a repository. Raise UserError for options that do not go together."""
    given = [name for name in ("license", "public", "with_photos", "replace") if getattr(options, name)]
    if not repository:
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} belongs to {option}; give {option} too, or leave it out")
        return None
    repository, _ = of_page(repository, MODEL, None, option)
    hub_repository.check_name(repository)
    if options.license and not _LICENSE.fullmatch(options.license):
        raise UserError(
            f"--license {options.license!r} must be one of the identifiers of"
            " https://huggingface.co/docs/hub/repositories-licenses, such as creativeml-openrail-m, or other"
        )
    if options.public and not options.license:
        raise UserError(
            "--public needs --license, which says what others may do with the model; a model made from Stable"
            " Diffusion 1 keeps its license creativeml-openrail-m, one made from Stable Diffusion 2 openrail++"
        )
    return Destination(repository, options.license, options.public, options.with_photos, options.replace)


def add_parser(commands: Any, package: str) -> None:
    parser = commands.add_parser("push", help="upload a finished run to the Hugging Face hub")
    parser.add_argument("--run", dest="run_dir", required=True, type=path, help="a finished run folder")
    parser.add_argument(
        "--to", required=True, metavar="OWNER/NAME", help="the repository, created if it does not exist"
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(package: str, options: argparse.Namespace) -> None:
    """Push a run and print the address of its page. The run may be of either backend, as only its files are read."""
    to = destination(options, options.to, "--to")
    assert to is not None, "--to is required"
    folder = Path(options.run_dir)
    _exported(gather(folder))
    to.check()
    print(to.push(folder))


def _exported(report: Report) -> Path:
    """Return the folder with the run's pipeline or LoRA. Raise UserError if the run has not finished."""
    is_lora = report.config.adapter.kind == "lora"
    folder = report.path / ("lora" if is_lora else "pipeline")
    if not (folder / (lora_file.FILE if is_lora else "model_index.json")).is_file():
        raise UserError(f"--run {report.path} is not finished: it has no {folder.name}/ yet; train it to the end first")
    return folder


def _gathered(report: Report, to: Destination) -> tuple[dict[str, Path | bytes], Shown]:
    """Return ({name in the repository: file or content}, what the card says about them), without the card itself."""
    folder = _exported(report)
    files: dict[str, Path | bytes] = dict(_within(folder))
    tokens = {f"{TOKENS}/{name}": file for name, file in _within(report.path / "tokens")}
    photos = {f"{PHOTOS}/{number:02d}.jpg": photo for number, photo in enumerate(_photos(report), start=1)
              } if to.with_photos else {}  # fmt: skip
    seen: dict[str, Path] = {}
    if report.previews:
        newest = report.previews[max(report.previews)]
        seen[f"{IMAGES}/{newest.name}"] = newest
    preview = next(iter(seen), "")
    before_after = f"{IMAGES}/before_after.png" if report.before_after and to.with_photos else ""
    if report.before_after and before_after:
        seen[before_after] = report.before_after
    elif report.before_after:
        log.info("before_after.png is not pushed, as it shows photos; --with-photos pushes both")
    step = exported_step(folder)
    shown = Shown(
        to.repository, report.step if step is None else step, to.license, preview, before_after, tuple(photos),
        tuple(tokens),
    )  # fmt: skip
    return {**files, **tokens, **seen, **photos}, shown


def _within(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of the files in a folder.

    Left out are our record, which has paths of this machine, hidden files, and links that lead out of the folder.
    """
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not hidden and name.name != RECORD and file.resolve().is_relative_to(folder.resolve()):
            yield name.as_posix(), file


def _photos(report: Report) -> Iterator[bytes]:
    """Yield the photos as JPEG bytes, without the metadata that a camera wrote into them, such as the place.

    Raise UserError if a photo cannot be read.
    """
    for album in report.albums:
        if album.kind != "instance":
            continue
        for name in album.captions:
            try:
                yield pictures.thumbnail(album.folder / name, *_PHOTO)[0]
            except Exception as error:  # PIL may raise any exception
                raise UserError(
                    f"--with-photos: {album.folder / name} cannot be read ({error}); put it back, or leave"
                    " --with-photos out"
                ) from error
