"""The precision of products in the whole process: float32 products are exact."""

import jax


def exact_float32() -> None:
    """Make float32 products exact: TPUs and newer GPUs would use fewer bits. bfloat16 products do not change.

    The setting is for the whole process, including other JAX code.
    """
    jax.config.update("jax_default_matmul_precision", "highest")
