"""The mathematics of diffusion, once for both backends: schedules, solvers, losses, and the contract with a backend.

Nothing is read or written here, and nothing knows of photos or of a run.
This room may import `common`, `config` and `models`.
"""
