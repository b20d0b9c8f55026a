"""Networks that describe pictures: DINO and CLIP in transformers' format, with which DreamBench measures.

jaxbooth uses them too. They need neither diffusers nor torchvision.
"""

import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from booth.common.errors import UserError, reading
from booth.config.sources import MODEL, is_id, of_page
from booth.models.tokenizer import Tokenizer

_BATCH = 32


@dataclass(frozen=True)
class Preprocessing:
    """Turns uint8 pictures into a network's input: the short side is resized to `short` pixels (bicubic), the middle
    `side` x `side` is cropped, and values in [0, 1] are reduced by `mean` and divided by `std`."""

    short: int
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Return [3, side, side] float32 of [h, w, 3] uint8, as transformers' image processors with PIL compute it.

        The longer side is rounded down to whole pixels. If the margin is odd, the crop is nearer to the beginning.
        """
        height, width = picture.shape[:2]
        shorter = min(height, width)
        size = (self.short * width // shorter, self.short * height // shorter)
        image = Image.fromarray(picture)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        pixels = np.asarray(image.crop((left, top, left + self.side, top + self.side)), np.float32) / 255
        return ((pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)).transpose(2, 0, 1)


def dino_preprocessing(side: int = 224) -> Preprocessing:
    """Return DreamBench's preprocessing: 256, then the middle 224, ImageNet's statistics; other sides in proportion."""
    return Preprocessing(side * 256 // 224, side, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def clip_preprocessing(side: int = 224) -> Preprocessing:
    """Return the preprocessing of CLIP's own processor."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return Preprocessing(side, side, mean, std)


class Dino:
    """A vision transformer whose CLS token, after the last norm, describes a picture."""

    def __init__(self, source: str) -> None:
        """Load the network from a folder, or from a hub id that is in the cache. Raise UserError if it is not there."""
        self._network, folder = _load("--dino", source)
        if not isinstance(getattr(self._network.config, "image_size", None), int):
            raise UserError(f"--dino {source} holds no vision transformer; give one such as facebook/dino-vits16")
        self._prepare = dino_preprocessing(self._network.config.image_size)
        self.sha256 = _weights_hash(folder)

    def look(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return the unit vectors of pictures, float32 [n, width]."""
        return _in_batches(pictures, self._prepare, lambda pixels: self._network(pixel_values=pixels)[0][:, 0])


class Clip:
    """CLIP: pictures and texts as vectors of one space."""

    def __init__(self, source: str) -> None:
        """Load CLIP from a folder, or from a hub id that is in the cache. Raise UserError if it holds no CLIPModel."""
        self._network, folder = _load("--clip", source)
        if type(self._network).__name__ != "CLIPModel":
            raise UserError(f"--clip {source} holds no CLIPModel; give one such as openai/clip-vit-base-patch32")
        text = self._network.config.text_config
        self._tokenizer = Tokenizer(folder, text.max_position_embeddings, text.vocab_size)
        self._prepare = clip_preprocessing(self._network.config.vision_config.image_size)
        self.sha256 = _weights_hash(folder)

    def look(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return the unit vectors of pictures, float32 [n, projection]."""

        def embedded(pixels: torch.Tensor) -> torch.Tensor:
            return self._network.visual_projection(self._network.vision_model(pixel_values=pixels).pooler_output)

        return _in_batches(pictures, self._prepare, embedded)

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """Return the unit vectors of texts, float32 [n, projection]."""

        def embedded(ids: torch.Tensor) -> torch.Tensor:
            return self._network.text_projection(self._network.text_model(input_ids=ids).pooler_output)

        return _in_batches(texts, lambda text: self._tokenizer([text])[0].astype(np.int64), embedded)


def _in_batches(
    items: Sequence[Any], prepare: Callable[[Any], np.ndarray], compute: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """Return the unit vectors of all items, float32 [n, d]."""
    device = _device()
    found = []
    with torch.inference_mode():
        for first in range(0, len(items), _BATCH):
            batch = np.stack([prepare(item) for item in items[first : first + _BATCH]])
            found.append(torch.nn.functional.normalize(compute(torch.from_numpy(batch).to(device)).float(), dim=-1))
    return torch.cat(found).cpu().numpy()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load(option: str, source: str) -> tuple[Any, Path]:
    """Return (network in float32 and eval mode on the device, its folder). Raise UserError unless all its weights are
    in safetensors."""
    from transformers import AutoModel

    folder = _folder(option, source)
    pickle = folder / "pytorch_model.bin"
    if pickle.is_file() and not any(folder.glob("*.safetensors")):
        convert = ["torchbooth", "convert", str(pickle), "--out", str(folder / "model.safetensors")]
        raise UserError(
            f"{option} {source} has its weights in a pickle only, which is not loaded; convert them once:"
            f" {shlex.join(convert)}"
        )
    with reading(f"{option} {source} cannot be loaded", "it must hold config.json and model.safetensors"):
        network, found = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    # The pooler of a vision transformer is not used, and DINO's weights have none.
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(f"{option} {source} is incomplete: it lacks {', '.join(missing[:3])}; download it again")
    return network.eval().requires_grad_(False).to(_device()), folder


def _folder(option: str, source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    source, revision = of_page(source, MODEL, "", option)
    if not is_id(source):
        raise UserError(f"{option} {source} is no folder; give one, or the hub id of weights in the cache")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision or None, local_files_only=True))
    except Exception as error:  # several kinds for what is not in the cache
        at = f" --revision {revision}" if revision else ""
        raise UserError(f"{option} {source} is not in the hub's cache; fetch it: hf download {source}{at}") from error


def _weights_hash(folder: Path) -> str:
    """Return the sha256 of the weights and configs of a folder."""
    total = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
