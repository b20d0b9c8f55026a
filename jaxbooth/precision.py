"""What is computed in which type, process-wide: float32 means float32."""

import jax


def exact_float32() -> None:
    """Float32 products are exact, where TPUs and newer GPUs would multiply in less; bfloat16 is as it was.

    It is the process's setting: it also holds for other JAX code beside a run.
    """
    jax.config.update("jax_default_matmul_precision", "highest")
