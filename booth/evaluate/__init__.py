"""Measures of what was trained: prompts, pictures, judges and scores.

What looks at pictures with a large network is passed in by a backend; the command lives in `commands`.
This room may import `common`, `config`, `models`, `diffusion`, `data` and `train`.
"""
