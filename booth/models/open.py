"""Opening a model of any kind: a folder, the embedded base, an id on the hub, or a single-file checkpoint."""

from pathlib import Path

from booth.common.errors import UserError
from booth.config.sources import EMBEDDED, MODEL, is_id, of_page
from booth.models import embedded, hub
from booth.models.pipeline import PICKLES, PipelineDir, open_folder
from booth.models.safetensors_reader import SUFFIX
from booth.models.single_file import open_single_file


def open_pipeline(
    source: str | Path, variant: str = "", revision: str = "", *, config: str = "", weights: bool = True
) -> PipelineDir:
    """Open a pipeline and check that it is complete, readable and of a supported family.

    `source` is a folder; "embedded", the base that comes with booth; the id of a model on the hub, whose configs are
    downloaded now and whose weights later; or a single-file checkpoint, whose configs and tokenizer come from `config`.
    `variant` is the middle part of the weight files' names, such as `fp16`; `revision` is a branch, tag or commit of a
    hub model. Without `weights` only the configs must exist. Raise UserError if it cannot be opened.
    """
    if isinstance(source, str):
        source, revision = of_page(source, MODEL, revision)
    where = f"model.source={source}"
    named_file = str(source).endswith((SUFFIX, *PICKLES))
    model = hub.find(str(source), revision) if is_id(str(source)) and not named_file else None
    path = model.path if model else _local_path(source)
    if path.is_file():
        for field, value in (("model.variant", variant), ("model.revision", revision)):
            if value:
                raise UserError(f"{field}={value!r} is not for single files, and {where} is one; leave it empty")
        return open_single_file(path, config, lambda source: open_pipeline(source, weights=False))
    if named_file and not path.exists():
        raise UserError(
            f"{where}: no such file; give a single-file checkpoint, a diffusers pipeline folder or a hub id"
        )
    if config:
        raise UserError(f"model.config={config!r} is for single files, and {where} is none; leave it empty")
    if not path.is_dir():
        raise UserError(f"{where}: no such folder; give a diffusers pipeline folder, or a hub id such as owner/name")
    if revision and not model:
        raise UserError(f"model.revision={revision!r} is for hub ids, and {where} is a local folder; leave it empty")
    return open_folder(where, path, variant, model, weights=weights)


def _local_path(source: str | Path) -> Path:
    return embedded.base_path() if source == EMBEDDED else Path(source).expanduser()
