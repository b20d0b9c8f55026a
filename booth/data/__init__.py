"""The user's input: photos, captions, masks and class images, and how they are checked and prepared.

Code that generates class images and makes batches is in `train`.
This room may import `common`, `config`, `models` and `diffusion`.
"""
