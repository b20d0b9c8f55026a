"""One run: its folder and record, checkpoints, batches, class images, previews, and the loop.

What is computed on a device lives in the backends; what a finished run looks like lives in `report`.
This room may import `common`, `config`, `models`, `diffusion` and `data`.
"""
