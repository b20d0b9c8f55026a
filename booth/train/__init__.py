"""One run: its folder and record, checkpoints, batches, class images, previews, and the loop.

Computations on a device are in the backends; code that shows a run is in `report`.
This room may import `common`, `config`, `models`, `diffusion` and `data`.
"""
