"""The mathematics of diffusion for both backends: schedules, solvers, losses, and the contract with a backend.

Nothing is read or written here, and nothing depends on photos or on a run.
This room may import `common`, `config` and `models`.
"""
