"""The DreamBooth loss (arXiv 2208.12242, eq. 2), for NumPy, JAX and torch arrays alike.

One forward pass covers instance and class rows. The prior is a weight of each row (1/B for instance rows, lambda/B for
class rows; min-SNR multiplies each by the weight of its timestep), not a half of the batch. So every shard of the batch
is correct by itself, a padding row has weight 0, and the sum over all rows is mean(instance) + lambda * mean(class).
Only operators and `mean`/`sum` are used.
"""

from typing import Any


def noisy_latents(batch: Any) -> Any:
    """Return z_t = alpha_t z + sigma_t eps, [rows, h, w, c]."""
    return _column(batch.signal) * batch.latents + _column(batch.sigma) * batch.noise


def dreambooth_loss(prediction: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    """Return the loss of a batch and its parts, float32 scalars.

    `prediction`: float32 [rows, h, w, c or 2c]; a model with learned variance predicts 2c channels, of which the first
    half is the mean. Return (loss, {"loss", "instance_loss", "prior_loss"}): the parts are means over their rows,
    before lambda; prior_loss is 0 without class rows. All are sums over rows, so the losses of a batch's pieces add up.
    """
    prediction = prediction[..., : batch.latents.shape[-1]]
    target = _column(batch.target_latent) * batch.latents + _column(batch.target_noise) * batch.noise
    row_loss = (batch.mask * _error(prediction - target, batch)).mean(axis=(1, 2, 3))
    loss = (batch.weight * row_loss).sum()
    return loss, {
        "loss": loss,
        "instance_loss": (batch.instance_weight * row_loss).sum(),
        "prior_loss": (batch.prior_weight * row_loss).sum(),
    }


def _error(difference: Any, batch: Any) -> Any:
    """Return the error of each difference, [rows, h, w, c].

    "mse": x^2. "huber" and "smooth_l1" are the pseudo-Huber losses that diffusers' research scripts and
    kohya-ss/sd-scripts give these names (arXiv 2403.16728): 2 delta (sqrt(x^2 + delta^2) - delta), which is about
    x^2 for a small x, and the same divided by delta, which is about 2 |x| for a large x.
    """
    squared = difference**2
    if batch.loss == "mse":
        return squared
    delta = _column(batch.huber_delta)
    above = squared / ((squared + delta**2) ** 0.5 + delta)  # sqrt(x^2 + delta^2) - delta, without its cancellation
    return 2 * delta * above if batch.loss == "huber" else 2 * above


def _column(rows: Any) -> Any:
    return rows[:, None, None, None]
