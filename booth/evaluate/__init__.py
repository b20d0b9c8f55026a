"""Measures of a trained model: prompts, pictures, judges and scores.

The backend provides the large networks that look at pictures; the command is in `commands`.
This room may import `common`, `config`, `models`, `diffusion`, `data` and `train`.
"""
