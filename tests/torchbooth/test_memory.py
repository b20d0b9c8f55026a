"""Memory techniques: each alone and together, the same training as without them."""

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from booth.common.errors import UserError
from booth.config.values import set_field
from booth.data.input_rules import validate
from booth.data.inputs import check_inputs
from booth.models.embedded import BASE, subject_path
from booth.models.open import open_pipeline
from booth.train import loop
from booth.train.learning_rate import learning_rates
from booth.train.preparation import prepare
from booth.train.run_folder import RunDir
from torchbooth import checkpoint, memory, sample
from torchbooth.backend import Backend

STEPS = 4
CLIPPED = 1e-3  # far below what the gradients' norm is
BLOCK = {"train.gradient_checkpointing": "block"}
FUSED = {"memory.fused_backward": True}
OFFLOAD = {"memory.offload_optimizer": "always"}
BF16 = {"train.precision": "bf16"}
AVERAGED = {"ema.decay": 0.9}
ROUNDED = {**BF16, "memory.weights": "bf16"}
OPTIMIZERS = ("adamw", "adamw8bit", "lion", "lion8bit", "adafactor")


@pytest.fixture(scope="module")
def job(make_tiny_config, tmp_path_factory):
    """A config, batches of 2 + 2 rows, and `run`: settings -> losses, norms, update and state after STEPS of them."""
    config = make_tiny_config()
    config.train.learning_rate = 1e-4
    config.train.steps = STEPS
    inputs = check_inputs(config)
    backend = Backend(config)
    with RunDir.open(tmp_path_factory.mktemp("run") / "run", "torch", config) as run:
        make = prepare(config, inputs, run, backend, backend.load(inputs.pipeline))
    batches = [make(step, learning_rates(config, step)) for step in range(STEPS)]
    done = {}

    def train(fields, batches=batches):
        changed = config.copy_and_resolve_references()
        for name, value in fields.items():
            set_field(changed, name, value)
        validate(changed, "torch")
        backend = Backend(changed)
        state = backend.init(backend.load(inputs.pipeline))
        before = snapshot(backend, state)
        metrics = []
        for batch in batches:
            if changed.train.text_encoder:
                ids = inputs.tokenizer([config.instance.prompt, config.prior.prompt])
                batch = replace(batch, prompts=ids, learning_rate=learning_rates(changed, 0))
            state, made = backend.train_step(state, batch)
            metrics.append({name: float(value) for name, value in made.items()})
        return SimpleNamespace(
            backend=backend, state=state, metrics=metrics, update=snapshot(backend, state) - before, config=changed,
            losses=[line["loss"] for line in metrics], norms=[line["grad_norm"] for line in metrics],
        )  # fmt: skip

    def run(**fields):
        key = tuple(sorted(fields.items()))
        if key not in done:
            done[key] = train(fields)
        return done[key]

    return SimpleNamespace(run=lambda fields: run(**fields), train=train, config=config, inputs=inputs, batches=batches)


def snapshot(backend, state):
    return np.concatenate([array.ravel() for _, _, array in backend.tensors(state)]).astype(np.float64)


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# A float32 weight of 0.1 is known to 7e-9, and an update of it is 1e-4 large: optimizers whose kernels round the same
# sums differently are this far apart at most, on whatever processor.
ROUNDED_ONCE = 2e-4
# Sums in another order: Adam makes an update of full size of a gradient that is nothing but such a difference.
OTHER_ORDER = 1e-3
# settings -> (what they must train as, relative distance of the updates at most)
SAME = {
    "recomputing all": (BLOCK, {}, 0),
    "recomputing some": ({**BLOCK, "train.checkpointed_blocks": ("down_blocks.0", "up_blocks.1")}, {}, 0),
    "in the backward pass": ({**FUSED, "train.max_grad_norm": 0.0}, {"train.max_grad_norm": 0.0}, ROUNDED_ONCE),
    "states in the host's memory": (OFFLOAD, {}, ROUNDED_ONCE),
    "the same between previews": ({"memory.offload_optimizer": "sampling"}, {}, 0),
    "an average in the host's memory": ({**AVERAGED, "ema.device": "host"}, AVERAGED, 0),
    "pulled, offloaded": ({"train.pull": 1e3, **OFFLOAD}, {"train.pull": 1e3}, ROUNDED_ONCE),
    "channels last": ({"train.channels_last": True}, {}, OTHER_ORDER),
    "two pieces": ({"train.accumulation": 2}, {}, OTHER_ORDER),
    "two pieces, offloaded, recomputed": ({"train.accumulation": 2, **OFFLOAD, **BLOCK}, {}, OTHER_ORDER),
    "text encoder": (
        {"train.text_encoder": True, **FUSED, **OFFLOAD, **BLOCK, "train.max_grad_norm": 0.0},
        {"train.text_encoder": True, "train.max_grad_norm": 0.0},
        ROUNDED_ONCE,
    ),
    "bf16": (
        {**BF16, **FUSED, **OFFLOAD, **BLOCK, "train.max_grad_norm": 0.0},
        {**BF16, "train.max_grad_norm": 0.0},
        ROUNDED_ONCE,
    ),
    "rounded weights": (
        {**ROUNDED, **FUSED, **OFFLOAD, **BLOCK, "train.max_grad_norm": 0.0},
        {**ROUNDED, "train.max_grad_norm": 0.0},
        0,
    ),
    **{
        f"{optimizer}, all at once": (
            {"train.optimizer": optimizer, **FUSED, **OFFLOAD, **BLOCK, "train.max_grad_norm": 0.0},
            {"train.optimizer": optimizer, "train.max_grad_norm": 0.0},
            ROUNDED_ONCE,
        )
        for optimizer in OPTIMIZERS
    },
    **{
        f"{optimizer}, channels last": ({"train.optimizer": optimizer, "train.channels_last": True},
                                        {"train.optimizer": optimizer}, limit)
        for optimizer, limit in (("adafactor", 1e-2),)
    },
}  # fmt: skip


# One technique each, or all that go together; the full suite has every optimizer and type with all of them.
SAME_TOO = ("bf16", "rounded weights", "adamw, all at once", "lion, all at once", "lion8bit, all at once",
            "adafactor, all at once", "adafactor, channels last", "two pieces, offloaded, recomputed")  # fmt: skip


@pytest.mark.parametrize(("fields", "plain", "limit"), [
    pytest.param(*case, id=name, marks=[pytest.mark.full] * (name in SAME_TOO)) for name, case in SAME.items()
])  # fmt: skip
def test_it_trains_the_same(job, fields, plain, limit):
    ours, reference = job.run(fields), job.run(plain)
    assert np.linalg.norm(reference.update) > 0
    assert distance(ours.update, reference.update) <= limit
    assert ours.losses == pytest.approx(reference.losses, rel=max(limit / 10, 1e-12))
    assert ours.norms == pytest.approx(reference.norms, rel=max(limit / 10, 1e-5))


def test_a_slightly_wrong_update_is_noticed(job):
    """What the distances above must be able to tell."""
    plain = job.run({})
    for wrong in ({"train.weight_decay": 0.1}, {"train.adam_b1": 0.89}, {"train.adam_b2": 0.99}):
        assert distance(job.run(wrong).update, plain.update) > OTHER_ORDER, wrong


def test_an_average_is_float32_and_weights_come_back_to_the_bit(job):
    run = job.train({**ROUNDED, **AVERAGED})
    own = {name: parameter.detach().clone() for name, parameter in run.state.trainable.items()}
    average = run.state.average.weights
    assert {value.dtype for value in own.values()} == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in average.values())
    for _ in range(2):
        run.backend.models(run.state)
        assert all(torch.equal(parameter, average[name].bfloat16()) for name, parameter in run.state.trainable.items())
    run.state.average.take_out()
    assert all(torch.equal(parameter, own[name]) for name, parameter in run.state.trainable.items())
    far = sum((average[name] - value.float()).square().sum() for name, value in own.items())
    assert far > 0, "the average is not the weights"


def test_optimizers_differ(job):
    updates = [job.run({"train.optimizer": optimizer, "train.max_grad_norm": 0.0}).update for optimizer in OPTIMIZERS]
    for index, update in enumerate(updates):
        for other in updates[:index]:
            assert distance(update, other) > 1e-3


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor"])
def test_rounded_weights_train_nearly_as_float32(job, optimizer):
    """bfloat16 has 8 bits: of an update far smaller than the last of them, each weight gets all or nothing."""
    fields = {"train.optimizer": optimizer, "train.learning_rate": 1e-3}
    ours, reference = job.run({**ROUNDED, **fields}), job.run({**BF16, **fields})
    assert ours.losses == pytest.approx(reference.losses, rel=2e-2)
    along = ours.update @ reference.update / (reference.update @ reference.update)
    assert along == pytest.approx(1, abs=0.05), "the rounding errors are the same on average"


def test_rounding_to_either_neighbour_is_right_on_average():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([1.0, 1 + 2**-9, 1 + 2**-7 * 0.25, -3.14159, 1e-30, 0.0, float("inf"), float("nan")])
    target = torch.empty(8, dtype=torch.bfloat16)
    sums = torch.zeros(8, dtype=torch.float64)
    for _ in range(4000):
        memory.round_stochastically(target, values.clone(), generator)
        sums += target.double()
    mean = sums / 4000
    assert torch.equal(mean[[0, 5]], values[[0, 5]].double()) and mean[6].isinf() and mean[7].isnan()
    assert torch.allclose(mean[:5], values[:5].double(), rtol=5e-4, atol=0)
    memory.round_stochastically(target, values.clone(), generator)
    spacing = values[:5].abs() * 2**-7
    assert ((target[:5].float() - values[:5]).abs() < spacing).all(), "a neighbour, nothing further"


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "lion"])
def test_a_thousand_small_steps(tiny_config, optimizer):
    """In the mean as far as float32 goes, where rounding to the nearest goes nowhere (gradients all of one sign)."""
    config = tiny_config
    config.train.optimizer, config.train.learning_rate, config.train.weight_decay = optimizer, 5e-6, 0.0
    config.train.max_grad_norm = 0.0
    start = 0.05 + 0.1 * torch.rand(128, 256, generator=torch.Generator().manual_seed(1))  # as large as weights are

    def mean_update(dtype, make):
        parameter = torch.nn.Parameter(start.to(dtype))
        before = parameter.detach().float().clone()
        optimizer = make(parameter)
        for step in range(1000):
            parameter.grad = torch.full_like(parameter, 0.01)
            if isinstance(optimizer, memory.TensorwiseOptimizer):
                optimizer.begin(step)
            optimizer.step()
        return float((parameter.detach().float() - before).mean())

    exact = mean_update(torch.float32, lambda p: memory.make_optimizer([p], config))
    lost = mean_update(torch.bfloat16, lambda p: torch.optim.AdamW([p], lr=5e-6, weight_decay=0.0))
    ours = mean_update(torch.bfloat16, lambda p: memory.TensorwiseOptimizer({"unet.weight": p}, config))
    assert exact == pytest.approx(-5e-3, rel=0.05)
    assert ours == pytest.approx(exact, rel=0.01)
    assert abs(lost) < 0.1 * abs(exact)


def test_clipping_in_the_backward_pass(job):
    """Of the first update only what comes late is scaled; from then on all is, by the last norm at least."""
    clipped = {"train.max_grad_norm": CLIPPED}
    ours, joint = job.run({**FUSED, **clipped}), job.run(clipped)
    assert min(joint.norms) > 10 * CLIPPED
    assert ours.norms[0] == pytest.approx(joint.norms[0], rel=1e-5), "the same gradients, squares summed as they come"
    assert ours.norms == pytest.approx(joint.norms, rel=1e-2), "the true norm is reported"
    assert ours.losses == pytest.approx(joint.losses, rel=1e-2)


def test_clipping_knows_the_last_norm(tiny_config):
    """Three tensors, gradients 3, 4, 12 of a global norm 13 in every update: exactly as joint clipping from the second
    on, and in the first never more than `max_norm` for what is known."""
    config = tiny_config
    config.memory.fused_backward, config.train.max_grad_norm = True, 1.0
    parameters = {f"unet.{index}": torch.nn.Parameter(torch.zeros(1)) for index in range(3)}
    optimizer = memory.TensorwiseOptimizer(parameters, config)
    seen = []
    optimizer._update = lambda parameter: (seen.append(float(parameter.grad)), setattr(parameter, "grad", None))

    def update(gradients):
        seen.clear()
        optimizer.begin(0)
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            (parameter * gradient).sum().backward()
        return float(optimizer.end()), list(seen)

    norm, first = update((3.0, 4.0, 12.0))
    assert norm == pytest.approx(13) and first == pytest.approx([3 / 3, 4 / 5, 12 / 13])
    norm, second = update((3.0, 4.0, 12.0))
    assert norm == pytest.approx(13) and second == pytest.approx([3 / 13, 4 / 13, 12 / 13])
    norm, third = update((0.3, 0.4, 0.0))
    assert norm == pytest.approx(0.5) and third == pytest.approx([0.3 / 13, 0.4 / 13, 0])
    assert update((0.3, 0.4, 0.0))[1] == pytest.approx([0.3, 0.4, 0]), "below the limit nothing is scaled"


def test_gradients_are_freed_inside_the_backward_pass(job):
    plain, fused = job.run({}), job.run(FUSED)
    for run in (plain, fused):
        assert all(parameter.grad is None for parameter in run.state.trainable.values())
    there = []
    for parameter in fused.state.trainable.values():
        parameter.register_post_accumulate_grad_hook(
            lambda _: there.append(sum(p.grad is not None for p in fused.state.trainable.values()))
        )
    fused.backend.train_step(fused.state, job.batches[0])
    assert len(there) > 100 and max(there) == 0


@pytest.mark.parametrize("fields", [
    {**ROUNDED, **FUSED, "train.max_grad_norm": CLIPPED},
    {**ROUNDED, **FUSED, **OFFLOAD, **BLOCK, "train.optimizer": "adamw8bit"},
    {**AVERAGED, "ema.device": "host", "train.optimizer": "adamw8bit", "train.pull": 1e3},
    *(pytest.param(fields, marks=pytest.mark.full) for fields in (
        {**ROUNDED, **OFFLOAD, "train.optimizer": "adafactor"},
        {"train.optimizer": "lion8bit", **FUSED},
        {"train.channels_last": True, "memory.offload_optimizer": "sampling"},
        {**OFFLOAD, "train.gradient_checkpointing": "block"},
        {**ROUNDED, **FUSED, **AVERAGED},
    )),
], ids=str)  # fmt: skip
def test_a_checkpoint_continues_to_the_bit(job, tmp_path, fields):
    whole = job.run(fields)
    half = job.train(fields, job.batches[:2])
    half.backend.models(half.state)  # as for previews
    (tmp_path / "saved").mkdir()
    half.backend.save(half.state, tmp_path / "saved")
    state = half.backend.init(half.backend.load(job.inputs.pipeline))
    state = half.backend.restore(state, tmp_path / "saved")
    losses = []
    for batch in job.batches[2:]:
        state, metrics = half.backend.train_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses == whole.losses[2:]
    assert np.array_equal(snapshot(half.backend, state), snapshot(whole.backend, whole.state))


def test_previews_in_between_change_nothing(job, tmp_path):
    """States are moved away and back; the VAE is tiled."""
    fields = {"memory.offload_optimizer": "sampling", "memory.vae_tiling": True}
    config = job.train(fields, []).config
    config.samples.every_steps, config.samples.inference_steps, config.samples.before_after = 1, 2, True
    run = loop.train(Backend, config, tmp_path / "tiled")
    config = config.copy_and_resolve_references()
    config.memory.offload_optimizer, config.memory.vae_tiling = "none", False
    config.prior.images = str(run.path / "class_images")
    plain = loop.train(Backend, config, tmp_path / "plain")
    ours, theirs = (
        load_file(folder.pipeline / "unet" / "diffusion_pytorch_model.safetensors") for folder in (run, plain)
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_tiles_differ_a_little_only(job):
    backend = Backend(job.config)
    models = backend.load(open_pipeline(str(BASE), "", ""))
    picture = next(subject_path("robot").glob("*.png"))
    pixels = torch.from_numpy(np.asarray(Image.open(picture).convert("RGB").resize((64, 64)))) / 127.5 - 1
    latents, _ = sample.encode(models, pixels.permute(2, 0, 1)[None])
    whole = models.vae.decode(latents, return_dict=False)[0]
    memory.use_tiles(models.vae)
    calls = []
    models.vae.decoder.register_forward_hook(lambda module, inputs, output: calls.append(tuple(output.shape[2:])))
    tiled = models.vae.decode(latents, return_dict=False)[0]
    assert tiled.shape == whole.shape and len(calls) > 1 and max(calls) == (32, 32)
    assert 0 < float((tiled - whole).detach().abs().mean()) < 0.1
    again, _ = sample.encode(models, pixels.permute(2, 0, 1)[None])
    assert torch.equal(again, latents), "what is trained on is never in tiles"


def test_networks_move_to_where_they_are_needed(job):
    """With a device that is another than the host's memory; "meta" can be one anywhere."""
    models = Backend(job.config).load(job.inputs.pipeline)
    models.unet.requires_grad_(True)
    placement = memory.Placement(torch.device("meta"))
    placement.place(models.networks, "training")
    there = {name: network.device.type for name, network in models.networks.items()}
    assert there == {"unet": "meta", "vae": "cpu", "text_encoder": "cpu"}
    models.unet.requires_grad_(False)
    models = Backend(job.config).load(job.inputs.pipeline)
    placement.place(models.networks, "encoding images")
    there = {name: network.device.type for name, network in models.networks.items()}
    assert there == {"unet": "cpu", "vae": "meta", "text_encoder": "cpu"}


def test_an_unknown_block_is_one_line(job):
    with pytest.raises(UserError, match=r"^train.checkpointed_blocks: this UNet has no down_blocks.7; its blocks are"):
        job.run({**BLOCK, "train.checkpointed_blocks": ("down_blocks.7",)})


def test_only_the_named_blocks_are_recomputed(job):
    unet = job.run({**BLOCK, "train.checkpointed_blocks": ("down_blocks.0",)}).state.models.unet
    recomputed = {name for name, module in unet.named_modules() if getattr(module, "gradient_checkpointing", False)}
    assert recomputed and all(name.startswith("down_blocks.0") for name in recomputed)


def test_states_live_in_the_hosts_memory(job, tmp_path):
    """Between updates, and of one tensor during its own; a checkpoint has them."""
    run = job.train({**OFFLOAD, "train.optimizer": "adamw8bit"}, job.batches[:2])
    (tmp_path / "saved").mkdir()
    checkpoint.save(run.state, tmp_path / "saved")
    plain = job.train({"train.optimizer": "adamw8bit"}, job.batches[:2])
    (tmp_path / "plain").mkdir()
    checkpoint.save(plain.state, tmp_path / "plain")
    ours, theirs = (load_file(tmp_path / name / "optimizer.safetensors") for name in ("saved", "plain"))
    assert ours.keys() - theirs.keys() == {"last_norm"}
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.full
@pytest.mark.parametrize("fields", [BLOCK, {}], ids=str)
def test_a_compiled_unet_trains_the_same(job, tmp_path, monkeypatch, fields):
    """Traced and differentiated as a whole; on a CPU without generated code, which is wrong there."""
    if not torch.cuda.is_available():
        compile_ = torch.compile
        monkeypatch.setattr(torch, "compile", lambda unet, **_: compile_(unet, backend="aot_eager"))
    torch.compiler.reset()
    ours = job.train({"train.compile": "default", **fields})
    assert distance(ours.update, job.run(fields).update) < 1e-4
    ours.backend.save(ours.state, tmp_path)
    names = {name for name, _ in ours.state.models.unet.named_parameters()}
    assert {f"unet.{name}" for name in names} == set(load_file(tmp_path / "trainable.safetensors")), "names stay"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which is not refused")
def test_compiling_for_a_cpu_is_refused_with_the_reason(job):
    config = job.config.copy_and_resolve_references()
    config.train.compile = "default"
    with pytest.raises(UserError, match=r"^train.compile='default' needs a GPU: for a CPU, PyTorch's compiler makes a"):
        Backend.check(config)


def test_tf32_is_off_unless_asked_for(job):
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (True, False):
            config = job.train({"train.tf32": allowed}, []).config
            assert config.train.tf32 is allowed
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before


def test_a_missing_xformers_is_one_line(job, monkeypatch):
    config = job.config.copy_and_resolve_references()
    config.train.attention = "xformers"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^train.attention='xformers' needs xformers: pip install xformers"):
        Backend.check(config)


def test_how_clipping_differs_is_said(job, caplog):
    with caplog.at_level("INFO", "booth"):
        job.train({**FUSED, "train.max_grad_norm": 0.5}, [])
    assert "memory.fused_backward=true clips each gradient by the larger of the last update's norm" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "booth"):
        job.train({**FUSED, "train.max_grad_norm": 0.0}, [])
    assert "clips" not in caplog.text


SKIPPING = {
    **{optimizer: {"train.optimizer": optimizer} for optimizer in OPTIMIZERS},
    "in the backward pass": FUSED,
    "in the backward pass, 8 bits": {**FUSED, "train.optimizer": "adamw8bit"},
    "rounded weights": ROUNDED,
    "rounded in the backward pass": {**ROUNDED, **FUSED},
    "states in the host's memory": OFFLOAD,
    "two pieces": {"train.accumulation": 2},
    "pulled, averaged in the host's memory": {"train.pull": 1e3, **AVERAGED, "ema.device": "host"},
    "rounded in the backward pass, averaged": {**ROUNDED, **FUSED, **AVERAGED},
}


FEW = ("adamw", "in the backward pass, 8 bits", "rounded in the backward pass, averaged", "two pieces")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name not in FEW)) for name in SKIPPING]
)
def test_an_update_that_is_not_finite_is_left_out(job, name):
    latents = job.batches[1].latents.copy()
    latents[0, 1, 2, 3] = np.nan
    poisoned = replace(job.batches[1], latents=latents)
    got = job.train(SKIPPING[name], [job.batches[0], poisoned, job.batches[2]])
    wanted = job.train(SKIPPING[name], [job.batches[0], job.batches[2]])
    assert np.array_equal(got.update, wanted.update)
    assert [line["skipped"] for line in got.metrics] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("clipped", [0.0, 1.0])
def test_gradients_that_stop_being_finite_on_their_way_back(job, clipped):
    """In the backward pass it is too late to leave all of the update out; weights and moments stay finite."""
    run = job.train({**FUSED, "train.max_grad_norm": clipped}, job.batches[:1])
    middle = run.state.models.unet.mid_block.resnets[0].conv1.weight
    hook = middle.register_hook(lambda gradient: gradient * float("nan"))
    state, metrics = run.backend.train_step(run.state, job.batches[1])
    hook.remove()
    assert metrics["skipped"] == 1 and metrics["loss"].isfinite()
    _, metrics = run.backend.train_step(state, job.batches[2])
    assert metrics["skipped"] == 0 and metrics["grad_norm"].isfinite()
    for parameter in state.trainable.values():
        moments = [value for value in state.optimizer.state[parameter].values() if torch.is_tensor(value)]
        assert all(value.isfinite().all() for value in (parameter, *moments))
