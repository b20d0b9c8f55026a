"""Sampling tables against diffusers' own schedulers, for the scheduler configs that real pipelines carry.

Every check is also run on tables with one known mistake, and must reject each of them.
"""

import json
from itertools import product
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete

from booth.common.errors import UserError
from booth.config.choices import SOLVERS
from booth.diffusion import solvers
from booth.diffusion.schedule import noise_schedule
from booth.diffusion.solvers import HISTORY, as_in_pipeline, is_guided, needs_noise, solver_step, solver_table

CLASSES = {
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "pndm": PNDMScheduler,
}
EULER = ("euler", "euler_a")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}

# scheduler_config.json as published; SD2.1-base has the keys of SD1.5.
SD15 = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **BETAS, "clip_sample": False,
        "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None}  # fmt: skip
SD21 = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", **BETAS, "clip_sample": False,
        "prediction_type": "v_prediction", "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
        "trained_betas": None}  # fmt: skip

V = {"prediction_type": "v_prediction"}
CONFIGS = {
    "sd15": SD15,
    "sd15 saved again": SD15 | {"prediction_type": "epsilon", "timestep_spacing": "leading"},
    "sd21": SD21,
    "sd21 saved again": SD21 | {"timestep_spacing": "leading", "rescale_betas_zero_snr": False,
                                "clip_sample_range": 1.0, "thresholding": False},
    "old": {"_class_name": "PNDMScheduler", **BETAS},
    "old ddim": {"_class_name": "DDIMScheduler", **BETAS, "clip_sample": False, "set_alpha_to_one": False},
    "trailing": SD15 | {"timestep_spacing": "trailing"},
    "trailing v": SD21 | {"timestep_spacing": "trailing", "set_alpha_to_one": True},
    "zero SNR": SD21 | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    "zero SNR, leading": SD21 | {"timestep_spacing": "leading", "rescale_betas_zero_snr": True},
    "zero SNR, dpm to sigma_min": SD21 | {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing",
                                          "rescale_betas_zero_snr": True, "final_sigmas_type": "sigma_min"},
    "linspace v": SD21 | {"timestep_spacing": "linspace", "steps_offset": 0},
    "leading, offset 0": SD15 | {"timestep_spacing": "leading", "steps_offset": 0},
    "leading v, offset 3": SD21 | {"timestep_spacing": "leading", "steps_offset": 3},
    "clipped": SD15 | {"clip_sample": True, "clip_sample_range": 2.0, "set_alpha_to_one": True},
    "clipped v": SD21 | {"clip_sample": True},
    "euler": {"_class_name": "EulerDiscreteScheduler", **BETAS, "interpolation_type": "linear", "steps_offset": 1,
              "timestep_spacing": "leading", "use_karras_sigmas": False, "timestep_type": "discrete"},
    "lms": {"_class_name": "LMSDiscreteScheduler", **BETAS},
    "ddpm": {"_class_name": "DDPMScheduler", **BETAS, **V, "variance_type": "fixed_small", "clip_sample": False},
    "unipc": {"_class_name": "UniPCMultistepScheduler", **BETAS, "solver_type": "bh2", "solver_order": 2},
    "deis": {"_class_name": "DEISMultistepScheduler", **BETAS, "solver_order": 2, "solver_type": "logrho"},
    "dpm": {"_class_name": "DPMSolverMultistepScheduler", **BETAS, "algorithm_type": "dpmsolver++", "solver_order": 2,
            "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False,
            "lambda_min_clipped": -float("inf"), "variance_type": None, "use_lu_lambdas": False},
    "dpm to sigma_min": SD15 | {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min"},
    "dpm v to sigma_min": SD21 | {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"},
    "dpm second order to the end": SD15 | {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    "dpm euler at the end": SD15 | {"final_sigmas_type": "sigma_min", "euler_at_final": True},
    "linear": {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "num_train_timesteps": 500},
    "given betas": {"_class_name": "DDIMScheduler", "trained_betas": list(np.linspace(0.001, 0.02, 100)),
                    "num_train_timesteps": 100},
}  # fmt: skip
STEPS = (1, 2, 7, 20, 25, 50)


def pipelines_scheduler(config, folder):
    """The scheduler that the file names, loaded by its own class as a pipeline does it."""
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    return getattr(diffusers, config["_class_name"]).from_pretrained(folder)


def made(solver, config):
    """diffusers' scheduler for a solver `from_config` of another one's; PNDM always without Runge-Kutta steps."""
    return CLASSES[solver].from_config(config, **({"skip_prk_steps": True} if solver == "pndm" else {}))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Makes diffusers' scheduler for a solver from the pipeline's own."""
    folder = tmp_path_factory.mktemp("scheduler")

    def make(config, solver, steps):
        scheduler = made(solver, pipelines_scheduler(config, folder).config)
        scheduler.set_timesteps(steps)
        return scheduler

    return make


def levels(scheduler):
    """What diffusers' latents are ours times of, before each step and at the end, where what is left is decoded."""
    if not isinstance(scheduler, EulerDiscreteScheduler | EulerAncestralDiscreteScheduler):
        return np.ones(len(scheduler.timesteps) + 1)
    return np.append(np.hypot(1, scheduler.sigmas[:-1].double()), 1)


def equal(table, scheduler, tolerance=None):
    """Whether timesteps are the same and latents differ by less: what the model sees, what comes of a step from
    diffusers' latents, and of all steps from the same noise. Both get the same fresh noise.

    Predictions are of noise, so latents grow to 70, where neighbours in float32 are 8e-6 apart, and up to 50 steps
    round them in another order than diffusers does: 8e-5 was seen, which depends on the processor. diffusers' Euler
    begins at sigma 4096 where a schedule ends without signal: at 4096 x 3.5 neighbours are 1e-3 apart, and it subtracts
    from there.
    """
    if [row.timestep for row in table] != scheduler.timesteps.tolist():
        return False
    scales = levels(scheduler)
    tolerance = tolerance or (4e-3 if scales[0] > 1000 else 3e-4)
    random = np.random.default_rng(1)
    ours = random.standard_normal((1, 4, 8, 8)).astype(np.float32)
    theirs = torch.from_numpy(ours) * scheduler.init_noise_sigma
    history = ours_history = (np.zeros_like(ours),) * HISTORY
    apart = []
    for row, timestep, scale in zip(table, scheduler.timesteps, scales[1:], strict=True):
        prediction, noise = random.standard_normal((2, *ours.shape)).astype(np.float32)
        seen, x = scheduler.scale_model_input(theirs, timestep).numpy(), row.scale * ours
        step, history = solver_step(row, seen, history, prediction, noise)
        ours, ours_history = solver_step(row, x, ours_history, prediction, noise)
        with mock.patch.object(
            scheduling_euler_ancestral_discrete, "randn_tensor", return_value=torch.from_numpy(noise)
        ):
            theirs = scheduler.step(torch.from_numpy(prediction), timestep, theirs).prev_sample
        assert step.dtype == history[0].dtype == np.float32
        expected = theirs.numpy() / scale
        apart += [np.abs(x - seen).max(), np.abs(step - expected).max(), np.abs(ours - expected).max()]
    return bool(max(apart) < tolerance)


def can(config, solver):
    """PNDM is refused a schedule that ends without signal; see below."""
    return not (solver == "pndm" and config.get("rescale_betas_zero_snr"))


@pytest.mark.parametrize(
    ("name", "solver"), [pair for pair in product(CONFIGS, SOLVERS) if can(CONFIGS[pair[0]], pair[1])]
)
def test_every_step_is_diffusers(theirs, name, solver):
    config = CONFIGS[name]
    for steps in STEPS:
        assert equal(solver_table(config, solver, steps), theirs(config, solver, steps)), steps


def test_every_number_of_steps_has_diffusers_timesteps(theirs):
    for spacing in ("leading", "trailing", "linspace"):
        config = SD15 | {"timestep_spacing": spacing}
        for solver in SOLVERS:
            few = 1 if solver in ("dpm++", "ddim") else 7  # the others have the same spacings
            for steps in (*range(1, 130, few), 199, 201, 333, 334, 500, 501, 999):
                if (solver, spacing, steps) != ("dpm++", "leading", 999):  # refused below
                    # By rounding, diffusers' trailing makes one step more of some numbers (61, 103, ...), to -1.
                    expected = [t for t in theirs(config, solver, steps).timesteps.tolist() if t >= 0]
                    found = [row.timestep for row in solver_table(config, solver, steps)]
                    assert found == expected, (solver, spacing, steps)


def of_the_previous(factor, steps=slice(None)):
    """A mutant with another share of the previous clean latents, extrapolated as far as that."""

    def mutate(table):
        table = list(table)
        for place in range(len(table))[steps]:
            now, before, *rest = table[place].next_estimates
            change = (factor - 1) * before
            table[place] = table[place]._replace(next_estimates=(now - change, before + change, *rest))
        return table

    return mutate


def second_order_last(table):
    *others, before, last = table
    share, (now, _, *rest) = before.next_estimates[1], last.next_estimates
    return (*others, before, last._replace(next_estimates=(now - share, share, *rest)))


def shifted(table):
    numbers = (table[-1], *table[:-1])
    return [step._replace(timestep=right.timestep) for step, right in zip(numbers, table, strict=True)]


def every(**factors):
    return lambda table: [
        step._replace(**{name: factor * getattr(step, name) for name, factor in factors.items()}) for step in table
    ]


def first_again(table):
    """PNDM without its second look at the first step."""
    first, _, *others = table
    return [first, first._replace(timestep=table[1].timestep), *others]


def with_second(table):
    """PNDM whose later steps count the second prediction too."""
    order = lambda used: (used[0], used[1] + used[2], *used[3:], 0.0)  # noqa: E731
    return [*table[:2], *(step._replace(next_estimates=order(step.next_estimates)) for step in table[2:5]), *table[5:]]


def weaker(step, factor):
    return step._replace(next_x=factor * step.next_x)


TABLE_MUTANTS = {
    ("euler", "rows shifted"): shifted,
    ("euler", "latents divided by sigma^2 + 1"): lambda table: [
        step._replace(scale=0.999 * step.scale) for step in table
    ],
    ("euler", "all of the initial noise"): lambda table: [step._replace(scale=1.0) for step in table],
    ("euler", "not divided again"): lambda table: [weaker(table[0], 1.001), *table[1:]],
    ("euler_a", "rows shifted"): shifted,
    ("euler_a", "no fresh noise"): every(next_noise=0.0),
    ("euler_a", "sigma_up 0.1 % off"): every(next_noise=1.001),
    ("euler_a", "to the next level without sigma_down"): lambda table: [
        with_noise._replace(next_noise=noisy.next_noise)
        for with_noise, noisy in zip(solver_table(CONFIGS["sd15"], "euler", 20), table, strict=True)
    ],
    ("pndm", "rows shifted"): shifted,
    ("pndm", "no second look at the first step"): first_again,
    ("pndm", "the second prediction counted"): with_second,
    ("pndm", "first order"): lambda table: [
        step._replace(next_estimates=(sum(step.next_estimates), 0, 0, 0, 0)) for step in table
    ],
    ("dpm++", "first order"): of_the_previous(0),
    ("dpm++", "1/r for 1/2r"): of_the_previous(2),
    ("dpm++", "sign of D"): of_the_previous(-1),
    ("dpm++", "coefficients of second order 0.1 % off"): of_the_previous(1.001),
    ("dpm++", "one step of first order"): of_the_previous(0, slice(9, 10)),
    ("dpm++", "second order in the last step"): second_order_last,
    ("dpm++", "rows shifted"): shifted,
    ("ddim", "rows shifted"): shifted,
    ("ddim", "noise 0.1 % off"): every(next_p=1.001),
    ("ddim", "not clipped"): every(clip=np.inf),
}


@pytest.mark.parametrize(("solver", "mutate"), [(key[0], value) for key, value in TABLE_MUTANTS.items()],
                         ids=[" ".join(key) for key in TABLE_MUTANTS])  # fmt: skip
def test_wrong_tables_are_rejected(theirs, solver, mutate):
    for config in (CONFIGS["clipped"], CONFIGS["clipped v"]) if solver not in EULER else (CONFIGS["sd15"],):
        table = solver_table(config, solver, 20)
        assert equal(table, theirs(config, solver, 20))
        assert not equal(mutate(table), theirs(config, solver, 20))


def test_from_noise_alone(theirs):
    """The first step of a schedule with zero terminal SNR: what is predicted is the image, the noise says nothing."""
    config, (x, zero, prediction) = CONFIGS["zero SNR"], np.random.default_rng(4).standard_normal((3, 4))
    for solver in SOLVERS:
        if not can(config, solver):
            continue
        table = solver_table(config, solver, 20)
        assert all(np.isfinite(np.hstack(step._replace(clip=0.0))).all() for step in table)
        _, (clean, *_) = solver_step(table[0], x, (zero,) * HISTORY, prediction, zero)
        np.testing.assert_allclose(clean, -prediction, atol=1e-3)  # but for DDIM diffusers has 2**-24 of the signal
        for wrong in ({"rescale_betas_zero_snr": False}, {"timestep_spacing": "leading"}):
            assert not equal(solver_table(config | wrong, solver, 20), theirs(config, solver, 20))


def test_only_ancestral_steps_have_noise():
    assert [solver for solver in SOLVERS if needs_noise(solver_table(SD15, solver, 5))] == ["euler_a"]
    *steps, last = solver_table(SD15, "euler_a", 5)
    assert all(step.next_noise > 0 for step in steps) and last.next_noise == 0, "the end is clean"


def test_the_solvers_are_not_the_same(theirs):
    config = SD15 | {"timestep_spacing": "trailing"}
    tables = {solver: solver_table(config, solver, 20) for solver in SOLVERS}
    for one in SOLVERS:
        assert [other for other in SOLVERS if equal(tables[other], theirs(config, one, 20))] == [one]


@pytest.mark.parametrize(
    ("solver", "key", "wrong", "config"),
    [("dpm++", "timestep_spacing", "leading", SD15), ("dpm++", "timestep_spacing", "trailing", SD15),
     ("ddim", "timestep_spacing", "linspace", SD15), ("ddim", "timestep_spacing", "trailing", SD15),
     ("dpm++", "steps_offset", 1, {"_class_name": "PNDMScheduler", **BETAS, "timestep_spacing": "leading"}),
     ("ddim", "steps_offset", 1, CONFIGS["old"]), ("ddim", "clip_sample", False, CONFIGS["old"]),
     ("ddim", "clip_sample_range", 2.0, CONFIGS["old"]), ("ddim", "set_alpha_to_one", False, CONFIGS["old"]),
     ("dpm++", "final_sigmas_type", "sigma_min", SD15),
     ("dpm++", "lower_order_final", False, CONFIGS["dpm to sigma_min"]),
     ("dpm++", "euler_at_final", True, CONFIGS["dpm second order to the end"]),
     ("euler", "timestep_spacing", "leading", SD15), ("euler", "final_sigmas_type", "sigma_min", SD15),
     ("euler_a", "timestep_spacing", "trailing", SD15),
     ("euler_a", "steps_offset", 1, {"_class_name": "PNDMScheduler", **BETAS, "timestep_spacing": "leading"}),
     ("pndm", "timestep_spacing", "linspace", SD15), ("pndm", "set_alpha_to_one", True, CONFIGS["old"]),
     ("pndm", "steps_offset", 1, CONFIGS["old"])],
)  # fmt: skip
def test_wrong_defaults_are_rejected(theirs, monkeypatch, solver, key, wrong, config):
    assert equal(solver_table(config, solver, 7), theirs(config, solver, 7))
    monkeypatch.setitem(solvers._DEFAULTS[solver], key, wrong)
    assert not equal(solver_table(config, solver, 7), theirs(config, solver, 7))


def test_a_wrong_prediction_type_is_rejected(theirs):
    for solver in SOLVERS:
        assert not equal(solver_table(SD21 | {"prediction_type": "epsilon"}, solver, 7), theirs(SD21, solver, 7))


@pytest.mark.parametrize("name", ["sd15", "sd21", "old", "leading, offset 0", "leading v, offset 3", "clipped", "dpm"])
def test_as_the_whole_pipeline_has_it(tmp_path, name):
    """A StableDiffusionPipeline mends the config of its scheduler, before anyone calls from_config with it."""
    scheduler = pipelines_scheduler(CONFIGS[name], tmp_path)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
    pipe = StableDiffusionPipeline(scheduler=scheduler, **parts, requires_safety_checker=False)
    for solver in SOLVERS:
        theirs = made(solver, pipe.scheduler.config)
        theirs.set_timesteps(7)
        assert equal(solver_table(as_in_pipeline(CONFIGS[name]), solver, 7), theirs)
        if "offset" in name:  # the test could tell
            assert not equal(solver_table(CONFIGS[name], solver, 7), theirs)


def test_the_end_is_the_predicted_clean_image():
    x, previous, prediction = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    for solver in ("dpm++", "euler", "euler_a"):
        *_, last = solver_table(SD15, solver, 25)
        latents, (clean, *_) = solver_step(last, x, (previous,) * HISTORY, prediction, previous)
        schedule, place = noise_schedule(SD15), int(last.timestep)
        expected = (x - schedule.sigma(place) * prediction) / schedule.signal(place)
        np.testing.assert_allclose(clean, expected, rtol=1e-5)
        np.testing.assert_allclose(latents, clean, rtol=1e-6)


def test_jax_and_torch_go_through_the_same_lines():
    jnp = pytest.importorskip("jax.numpy")
    x, prediction, noise, *history = np.random.default_rng(3).standard_normal((3 + HISTORY, 4)).astype(np.float32)
    for solver in SOLVERS:
        for row in solver_table(CONFIGS["clipped v"], solver, 3):
            expected, (estimate, *_) = solver_step(row, x, tuple(history), prediction, noise)
            for convert in (jnp.asarray, torch.from_numpy):
                latents, kept = solver_step(
                    row, convert(x), tuple(map(convert, history)), *map(convert, (prediction, noise))
                )
                assert len(kept) == HISTORY
                for ours, numpy in ((latents, expected), (kept[0], estimate)):
                    assert type(ours) is type(convert(x)) and ours.dtype == convert(x).dtype
                    np.testing.assert_allclose(ours, numpy, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "change", "message"),
    [("dpm++", {"use_karras_sigmas": True},
      r"^scheduler: use_karras_sigmas=true must be false for the solver dpm\+\+; or take the solver ddim$"),
     ("dpm++", {"algorithm_type": "sde-dpmsolver++"}, r'algorithm_type="sde-dpmsolver\+\+" must be "dpmsolver'),
     ("dpm++", {"algorithm_type": "dpmsolver"}, 'algorithm_type="dpmsolver" must be'),
     ("dpm++", {"thresholding": True}, r"thresholding=true must be false for the solver dpm\+\+$"),
     ("ddim", {"thresholding": True}, "thresholding=true must be false for the solver ddim$"),
     ("dpm++", {"solver_order": 3}, "solver_order=3 must be 2"),
     ("dpm++", {"solver_type": "heun"}, 'solver_type="heun" must be "midpoint"'),
     ("dpm++", {"final_sigmas_type": "half"}, 'final_sigmas_type="half" must be "zero"'),
     ("dpm++", {"use_exponential_sigmas": True}, "use_exponential_sigmas=true must be false"),
     ("dpm++", {"use_beta_sigmas": True}, "use_beta_sigmas=true must be false"),
     ("dpm++", {"use_lu_lambdas": True}, "use_lu_lambdas=true must be false"),
     ("dpm++", {"use_flow_sigmas": True}, "use_flow_sigmas=true must be false"),
     ("dpm++", {"variance_type": "learned_range"}, 'variance_type="learned_range" must be null'),
     ("dpm++", {"lambda_min_clipped": -2.0}, r"lambda_min_clipped=-2.0 must be below -2.68"),
     ("euler", {"use_karras_sigmas": True}, "use_karras_sigmas=true must be false for the solver euler; or take the"),
     ("euler", {"use_exponential_sigmas": True}, "use_exponential_sigmas=true must be false"),
     ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas=true must be false"),
     ("euler", {"interpolation_type": "log_linear"}, 'interpolation_type="log_linear" must be "linear"'),
     ("euler", {"timestep_type": "continuous"}, 'timestep_type="continuous" must be "discrete"'),
     ("euler", {"final_sigmas_type": "half"}, 'final_sigmas_type="half" must be "zero"'),
     ("euler", {"rescale_betas_zero_snr": True}, "needs prediction_type='v_prediction'"),
     ("euler_a", {"prediction_type": "sample"}, "prediction_type='sample' must be one of"),
     ("pndm", {"skip_prk_steps": False}, "skip_prk_steps=false must be true for the solver pndm; or take the"),
     ("pndm", {"rescale_betas_zero_snr": True, **V}, "rescale_betas_zero_snr=true must be false for the solver pndm"),
     ("ddim", {"timestep_spacing": "dense"}, "timestep_spacing='dense' must be one of leading, trailing, linspace"),
     ("dpm++", {"timestep_spacing": None}, "timestep_spacing=None must be one of leading, trailing, linspace"),
     ("ddim", {"prediction_type": "sample"}, "prediction_type='sample' must be one of"),
     ("dpm++", {"rescale_betas_zero_snr": True},
      r"a schedule that ends without signal \(rescale_betas_zero_snr=true\) needs prediction_type='v_prediction'")],
)  # fmt: skip
def test_what_is_not_supported_is_refused(solver, change, message):
    with pytest.raises(UserError, match=message) as caught:
        solver_table(SD15 | change, solver, 10)
    assert "\n" not in str(caught.value)


def test_what_only_another_solver_reads_is_no_matter():
    solver_table(SD15 | {"use_karras_sigmas": True, "solver_order": 3, "algorithm_type": "sde-dpmsolver++"}, "ddim", 10)
    solver_table(SD15 | {"lambda_min_clipped": -5.1, "clip_sample": True}, "dpm++", 10)


@pytest.mark.parametrize(
    ("solver", "steps", "message"),
    [("ddim", 1001, "inference steps 1001 must be from 1 to 1000"), ("ddim", 0, "inference steps 0 must be from 1"),
     ("dpm++", 1000, "inference steps 1000 must be from 1 to 999"), ("dpm++", -1, "inference steps -1 must be from 1"),
     ("ddim", 1000, "inference steps 1000 with the scheduler's steps_offset=1 begin beyond the last of 1000 timesteps"),
     ("dpm++", 999, "inference steps 999 with the scheduler's steps_offset=1 begin beyond the last"),
     ("euler", 1000, "inference steps 1000 with the scheduler's steps_offset=1 begin beyond the last"),
     ("euler_a", 1001, "must be from 1 to 1000"),
     ("pndm", 1001, "must be from 1 to 1000"), ("pndm", 0, "must be from 1")],
)  # fmt: skip
def test_more_steps_than_the_schedule_has_room_for(solver, steps, message):
    with pytest.raises(UserError, match=message):
        solver_table(SD15 | {"timestep_spacing": "leading"}, solver, steps)


def test_guidance_of_one_needs_no_negative_prompt():
    assert [is_guided(scale) for scale in (0.0, 1.0, 1.01, 7.5)] == [False, False, True, True]
