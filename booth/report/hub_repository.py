"""Writing to a model's repository on the Hugging Face hub: check access and content, then push one commit.

The commit is made after all its files are uploaded, so nobody ever sees half a model. The hub keeps the files that were
uploaded before an interruption, so the same push again sends only what is missing.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from booth.common.errors import UserError
from booth.models.hub import first_line

CARD = "README.md"
_EMPTY = frozenset([".gitattributes", CARD])  # the files that a new repository may have
_TOKEN = "HF_TOKEN or `hf auth login`"
_TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def check_name(name: str) -> None:
    """Raise UserError if a repository cannot have this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name!r} is no name on the hub ({first_line(error)}); give owner/name") from error
    if "/" not in name:
        raise UserError(f"{name!r} is no name on the hub: it has no owner; give owner/name")


def check_access(name: str) -> None:
    """Ask the hub once whose token it is. Raise UserError if there is no token, or if it may not write to this owner's
    models."""
    from huggingface_hub import HfApi

    with explained(name):
        account = HfApi().whoami()
    token = account.get("auth", {}).get("accessToken", {})
    if not _may_write(token):
        raise UserError(
            f"{name}: your token may only read; make one that may write on {_TOKENS_PAGE} and give it with {_TOKEN}"
        )
    owners = [account["name"], *(organisation["name"] for organisation in account.get("orgs", []))]
    if name.partition("/")[0].lower() not in [owner.lower() for owner in owners]:
        raise UserError(
            f"{name}: your token belongs to {account['name']}, who may write to {', '.join(owners)} only; correct the"
            f" owner, or give another token with {_TOKEN}"
        )


def _may_write(token: Mapping[str, Any]) -> bool:
    """Return whether a fine-grained token may write anywhere; only the hub knows whether it may write here."""
    role = token.get("role")
    scopes = token.get("fineGrained", {}).get("scoped", [])
    return role != "read" and (role != "fineGrained" or any("repo.write" in scope["permissions"] for scope in scopes))


def push(
    name: str,
    files: Mapping[str, Path | bytes],
    mark: str,
    message: str,
    *,
    own_folders: Collection[str],
    public: bool,
    replace: bool,
) -> str:
    """Make the repository unless it exists, and one commit with these files. Return the address of its page.

    If a repository has other content, either its card must have the text `mark`, or `replace` deletes the other
    content. In a repository with the mark, files in `own_folders` that are not among these files are deleted. Raise
    UserError if anything goes wrong.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with explained(name):
        api.create_repo(name, private=not public, exist_ok=True)
        info = api.model_info(name)
        there = {file.rfilename for file in info.siblings or ()}
        marked = CARD in there and _card_has(api, name, info.sha, mark)
    if not info.private and not public:
        raise UserError(
            f"{name} exists and is public; give --public if that is meant, or make it private in its settings"
        )
    if not (marked or replace or there <= _EMPTY):
        raise UserError(
            f"{name} has other content ({len(there - _EMPTY)} files) than an earlier push of this run; choose another"
            " name, or give --replace, which deletes them (its history keeps them)"
        )
    ours = there if replace else {file for file in there if PurePosixPath(file).parts[0] in own_folders}
    gone = sorted(ours - files.keys() - {".gitattributes"})
    with explained(name):
        deletions = [CommitOperationDelete(file, is_folder=False) for file in gone]
        additions = [CommitOperationAdd(file, content) for file, content in files.items()]
        api.create_commit(name, [*deletions, *additions], commit_message=message, parent_commit=info.sha)
        if public and info.private:
            api.update_repo_settings(name, private=False)
    return f"{api.endpoint}/{name}"


def _card_has(api: Any, name: str, commit: str | None, mark: str) -> bool:
    card = Path(api.hf_hub_download(name, CARD, revision=commit))
    return mark in card.read_text(encoding="utf-8", errors="replace")


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn the exceptions of huggingface_hub and its transports during a push into one line that says what to do."""
    try:
        yield
    except Exception as error:  # every transport has its own exceptions
        raise UserError(f"{name}: {_explanation(error)}") from error


def _explanation(error: BaseException) -> str:
    from huggingface_hub import errors

    while isinstance(error, RuntimeError) and error.__cause__:  # the outer error only says which file it was
        error = error.__cause__
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    match error:
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE forbids asking the hub; unset that"
        case errors.LocalTokenNotFoundError():
            return f"no token to push with; make one that may write on {_TOKENS_PAGE} and give it with {_TOKEN}"
        case _ if status == 401:
            return f"the hub does not know your token; give another one with {_TOKEN}"
        case _ if status == 403:
            return f"the hub does not let your token do that ({_reason(error)}); give another one with {_TOKEN}"
        case _ if status == 404:
            return (
                f"no such owner or model on the hub, or your token may not see it ({_reason(error)}); correct the name"
            )
        case _ if status in (409, 412):
            return f"it changed while it was pushed to ({_reason(error)}); give the same command again"
        case _ if (400 <= status < 500 and status != 429) or isinstance(error, ValueError):
            return f"the hub does not take it ({_reason(error)}); correct that"
        case _ if status or isinstance(error, errors.HTTPError):
            return (
                f"the hub cannot be reached or is busy ({_reason(error)}); fix that or wait, then the same command"
                " sends what is missing"
            )
        case _:  # a file that disappeared, no permission, broken transfer
            return f"it cannot be pushed ({_reason(error)}); fix that, then the same command sends what is missing"


def _reason(error: BaseException) -> str:
    """Return the hub's message, or else the first line of the error; a validator's reason is in the lines after it."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError) and error.server_message:
        return first_line(ValueError(error.server_message))
    if isinstance(error, ValueError):
        return re.sub(r"\s+", " ", str(error)).strip(" .")
    return first_line(error)
