"""Networks that describe pictures, computed by PyTorch, since no library has DINO and CLIP for JAX."""

from torchbooth.vision import Clip, Dino

__all__ = ["Clip", "Dino"]
