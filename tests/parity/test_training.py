"""jaxbooth, torchbooth and a plain loop of diffusers modules with torch's AdamW train alike, number by number.

The plain loop shares no code with the project's step: its noise comes from diffusers' DDPMScheduler, its loss is the
mean over instance rows plus lambda times the mean over class rows, its optimizer is torch's with torch's defaults. The
same comparison must reject each mutant of our step.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from booth.preparation import check_inputs, prepare
from booth.rundir import RunDir

STEPS, LEARNING_RATE, PRIOR_WEIGHT = 20, 3e-4, 0.5
LOSS_TOLERANCE, UPDATE_TOLERANCE = 1e-5, 3e-4


@pytest.fixture(scope="module")
def job(make_tiny_config, tmp_path_factory):
    """The config, its inputs, 20 batches of 2 + 2 rows, and the reference result."""
    from torchbooth.backend import Backend

    config = make_tiny_config()
    config.prior.count, config.prior.weight = 3, PRIOR_WEIGHT
    config.train.steps, config.train.learning_rate = STEPS, LEARNING_RATE
    inputs = check_inputs(config)
    backend = Backend(config)
    with RunDir.open(tmp_path_factory.mktemp("run") / "run", "torch", config) as run:
        batches = prepare(config, inputs, run, backend, backend.load(inputs.pipeline))
    made = [batches(step, LEARNING_RATE) for step in range(STEPS)]
    return SimpleNamespace(config=config, inputs=inputs, batches=made, reference=reference_run(config, made))


def reference_run(config, batches):
    """(losses, {name: update}, {name: whether its gradient was ever more than rounding})."""
    folder = config.model.source
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train()
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE)
    prompts = [config.instance.prompt] * 2 + [config.prior.prompt] * 2
    ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        context = text_encoder(ids)[0]
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    losses, moved = [], dict.fromkeys(before, False)
    for batch in batches:
        latents, noise = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in (batch.latents, batch.noise))
        timesteps = torch.from_numpy(batch.timestep).long()
        prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
        (instance, prior), (instance_noise, prior_noise) = prediction.chunk(2), noise.chunk(2)
        mse = torch.nn.functional.mse_loss
        loss = mse(instance, instance_noise) + PRIOR_WEIGHT * mse(prior, prior_noise)
        loss.backward()
        total = torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        assert total > 1, "clipping must bite, or its mutant could not be rejected"
        for name, parameter in unet.named_parameters():
            moved[name] |= bool(parameter.grad.norm() > 1e-6)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    updates = {name: (parameter.detach() - before[name]).numpy() for name, parameter in unet.named_parameters()}
    return losses, updates, moved


def our_run(backend_class, job, config=None, batches=None):
    """(losses, {name: update}) of a backend, from the same batches."""
    config = config or job.config
    backend = backend_class(config)
    state = backend.init(backend.load(job.inputs.pipeline))
    before = {name: array.copy() for _, name, array in backend.tensors(state)}
    losses = []
    for batch in batches or job.batches:
        state, metrics = backend.train_step(state, batch)
        losses.append(metrics["loss"])
    return [float(loss) for loss in losses], {name: array - before[name] for _, name, array in backend.tensors(state)}


def distance(ours, reference):
    """(largest relative difference of a loss, relative difference of the whole update)."""
    losses, updates = ours
    reference_losses, reference_updates, moved = reference
    assert updates.keys() == reference_updates.keys()
    names = [name for name in updates if moved[name]]
    assert len(names) > 0.9 * len(updates)
    difference = np.sqrt(sum(np.sum((updates[name] - reference_updates[name]) ** 2.0) for name in names))
    size = np.sqrt(sum(np.sum(reference_updates[name] ** 2.0) for name in names))
    return np.max(np.abs(np.subtract(losses, reference_losses)) / reference_losses), difference / size


def agrees(ours, reference):
    loss, update = distance(ours, reference)
    print(f"loss {loss:.2e} update {update:.2e}")
    return loss <= LOSS_TOLERANCE and update <= UPDATE_TOLERANCE


def test_torchbooth_trains_as_the_reference(job):
    from torchbooth.backend import Backend

    assert agrees(our_run(Backend, job), job.reference)


def test_jaxbooth_trains_as_the_reference(job):
    from jaxbooth.backend import Backend

    assert agrees(our_run(Backend, job), job.reference)


def _with(config, **train):
    changed = config.copy_and_resolve_references()
    changed.train.update(train)
    return changed


def _lambda_on_the_wrong_rows(batch):
    # The older Flax script: both halves end up with the mean of the two weights.
    return replace(batch, weight=np.full_like(batch.weight, batch.weight.mean()))


def _scaled_rate(batch):
    return replace(batch, learning_rate=batch.learning_rate * np.float32(1.01))


@pytest.mark.parametrize(
    "mutant",
    [
        {"train": {"weight_decay": 1e-4}},  # optax's default
        {"train": {"max_grad_norm": 0.0}},
        {"batch": _scaled_rate},
        {"batch": _lambda_on_the_wrong_rows},
        {"gelu": "tanh"},
    ],
    ids=["optax weight decay", "no clipping", "learning rate x 1.01", "lambda on the wrong rows", "tanh GELU"],
)
def test_mutants_of_torchbooth_are_rejected(job, mutant, monkeypatch):
    from torchbooth.backend import Backend

    if "gelu" in mutant:
        exact = torch.nn.functional.gelu
        monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: exact(x, approximate="tanh"))
    batches = [mutant.get("batch", lambda batch: batch)(batch) for batch in job.batches]
    assert not agrees(our_run(Backend, job, _with(job.config, **mutant.get("train", {})), batches), job.reference)


@pytest.mark.parametrize("change", [_scaled_rate, _lambda_on_the_wrong_rows])
def test_mutants_of_jaxbooth_are_rejected(job, change):
    from jaxbooth.backend import Backend

    assert not agrees(our_run(Backend, job, batches=[change(batch) for batch in job.batches]), job.reference)


def test_the_weight_decay_of_optax_is_rejected(job):
    from jaxbooth.backend import Backend

    assert not agrees(our_run(Backend, job, _with(job.config, weight_decay=1e-4)), job.reference)


@pytest.mark.full  # each compiles the step anew
@pytest.mark.parametrize("mutant", ["no clipping", "tanh GELU"])
def test_compiled_mutants_of_jaxbooth_are_rejected(job, mutant, monkeypatch):
    import jax

    from jaxbooth import networks
    from jaxbooth.backend import Backend

    config = _with(job.config, max_grad_norm=0.0) if mutant == "no clipping" else job.config
    if mutant == "tanh GELU":
        exact = jax.nn.gelu
        monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: exact(x, approximate=True))
        networks._build.cache_clear()  # a network of its own, or the step compiled for the right one is found
    try:
        assert not agrees(our_run(Backend, job, config), job.reference)
    finally:
        networks._build.cache_clear()
