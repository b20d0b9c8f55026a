"""Learning rates against the schedulers of diffusers over torch, which people come from."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from booth.config.values import default_config
from booth.train.learning_rate import learning_rates

SCHEDULES = [
    {"lr_schedule": "constant"},
    {"lr_schedule": "constant", "lr_warmup_steps": 7},
    {"lr_schedule": "linear"},
    {"lr_schedule": "linear", "lr_warmup_steps": 7},
    {"lr_schedule": "cosine"},
    {"lr_schedule": "cosine", "lr_warmup_steps": 39},
    {"lr_schedule": "cosine_with_restarts"},
    {"lr_schedule": "cosine_with_restarts", "lr_cycles": 3},
    {"lr_schedule": "cosine_with_restarts", "lr_cycles": 2, "lr_warmup_steps": 8},
    {"lr_schedule": "polynomial"},
    {"lr_schedule": "polynomial", "lr_warmup_steps": 1, "lr_power": 2.5},
]
STEPS, UNET, TEXT = 40, 5e-6, 2e-6


def theirs(train):
    """[steps][2]: the rates that torch's optimizer has for UNet and text encoder."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weight], "lr": rate} for weight, rate in zip(weights, (UNET, TEXT), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=UNET)
    name = "constant_with_warmup" if train.lr_schedule == "constant" else train.lr_schedule
    scheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=train.lr_warmup_steps,
        num_training_steps=STEPS,
        power=train.lr_power,
        num_cycles=train.lr_cycles,
    )
    rates = []
    for _ in range(STEPS):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("fields", SCHEDULES, ids=lambda fields: " ".join(map(str, fields.values())))
def test_every_schedule_is_torchs(fields):
    config = default_config()
    config.train.update(fields, steps=STEPS, learning_rate=UNET, text_encoder=True, text_encoder_learning_rate=TEXT)
    ours = [learning_rates(config, step) for step in range(STEPS)]
    for rates, expected in zip(ours, theirs(config.train), strict=True):
        assert [rates["unet"], rates["text_encoder"]] == pytest.approx(expected, rel=1e-7, abs=1e-20)
    assert len({rates["unet"] for rates in ours}) > 1 or fields == {"lr_schedule": "constant"}


def test_restarts_are_at_the_peak():
    """Also where 3 * (1 / 3) and its like would be rounded to just below a whole number."""
    config = default_config()
    config.train.update(lr_schedule="cosine_with_restarts", lr_cycles=49, steps=98)
    rates = [learning_rates(config, step)["unet"] for step in range(98)]
    assert rates == pytest.approx([5e-6, 2.5e-6] * 49)


def test_the_text_encoder_has_a_rate_only_where_it_trains_and_the_unets_by_default():
    config = default_config()
    assert learning_rates(config, 3) == {"unet": 5e-6}
    config.train.text_encoder = True
    assert learning_rates(config, 3) == {"unet": 5e-6, "text_encoder": 5e-6}


def test_the_polynomial_ends_where_it_is_told_to():
    config = default_config()
    config.train.update(lr_schedule="polynomial", lr_end=1e-6, steps=1000)
    assert learning_rates(config, 0)["unet"] == pytest.approx(5e-6)
    assert learning_rates(config, 999)["unet"] == pytest.approx(1e-6, rel=1e-2)
