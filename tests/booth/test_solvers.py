"""Sampling tables against diffusers' own schedulers, for the scheduler configs that real pipelines carry.

Every check is also run on tables with one known mistake, and must reject each of them.
"""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

from booth import solvers
from booth.errors import UserError
from booth.schedule import noise_schedule
from booth.solvers import SOLVERS, as_in_pipeline, is_guided, solver_step, solver_table

CLASSES = {"ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler}
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


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Makes diffusers' scheduler for a solver from the pipeline's own."""
    folder = tmp_path_factory.mktemp("scheduler")

    def make(config, solver, steps):
        scheduler = CLASSES[solver].from_config(pipelines_scheduler(config, folder).config)
        scheduler.set_timesteps(steps)
        return scheduler

    return make


def equal(table, scheduler, tolerance=1e-4):
    """Whether timesteps are the same and latents differ by less, after every step and at the end of a trajectory.

    Step by step both start from diffusers' latents; in the trajectory our steps follow each other.
    """
    if [row.timestep for row in table] != scheduler.timesteps.tolist():
        return False
    random = np.random.default_rng(1)
    theirs = ours = random.standard_normal((1, 4, 8, 8)).astype(np.float32)
    clean = ours_clean = np.zeros_like(theirs)
    apart = []
    for row, timestep in zip(table, scheduler.timesteps, strict=True):
        prediction = random.standard_normal(theirs.shape).astype(np.float32)
        step, clean = solver_step(row, theirs, clean, prediction)
        ours, ours_clean = solver_step(row, ours, ours_clean, prediction)
        theirs = scheduler.step(torch.from_numpy(prediction), timestep, torch.from_numpy(theirs)).prev_sample.numpy()
        assert step.dtype == clean.dtype == np.float32
        apart += [np.abs(step - theirs).max(), np.abs(ours - theirs).max()]
    return bool(max(apart) < tolerance)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_step_is_diffusers(theirs, config, solver):
    for steps in STEPS:
        assert equal(solver_table(config, solver, steps), theirs(config, solver, steps)), steps


def test_every_number_of_steps_has_diffusers_timesteps(theirs):
    for spacing in ("leading", "trailing", "linspace"):
        config = SD15 | {"timestep_spacing": spacing}
        for solver in SOLVERS:
            for steps in (*range(1, 130), 199, 201, 333, 334, 500, 501, 999):
                if (solver, spacing, steps) != ("dpm++", "leading", 999):  # refused below
                    # By rounding, diffusers' trailing makes one step more of some numbers (61, 103, ...), to -1.
                    expected = theirs(config, solver, steps).timesteps.tolist()[:steps]
                    assert [row.timestep for row in solver_table(config, solver, steps)] == expected, (
                        solver,
                        spacing,
                        steps,
                    )


def of_the_previous(factor, steps=slice(None)):
    """A mutant with another share of the previous clean latents, extrapolated as far as that."""

    def mutate(table):
        table = list(table)
        for place in range(len(table))[steps]:
            step, change = table[place], (factor - 1) * table[place].next_previous
            table[place] = step._replace(next_clean=step.next_clean - change, next_previous=step.next_previous + change)
        return table

    return mutate


def second_order_last(table):
    *others, before, last = table
    share = before.next_previous
    return (*others, before, last._replace(next_clean=last.next_clean - share, next_previous=share))


def shifted(table):
    numbers = (table[-1], *table[:-1])
    return [step._replace(timestep=right.timestep) for step, right in zip(numbers, table, strict=True)]


def every(**factors):
    return lambda table: [
        step._replace(**{name: factor * getattr(step, name) for name, factor in factors.items()}) for step in table
    ]


TABLE_MUTANTS = {
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
    for config in (CONFIGS["clipped"], CONFIGS["clipped v"]):
        table = solver_table(config, solver, 20)
        assert equal(table, theirs(config, solver, 20))
        assert not equal(mutate(table), theirs(config, solver, 20))


def test_from_noise_alone(theirs):
    """The first step of a schedule with zero terminal SNR: what is predicted is the image, the noise says nothing."""
    config, (x, zero, prediction) = CONFIGS["zero SNR"], np.random.default_rng(4).standard_normal((3, 4))
    for solver in SOLVERS:
        table = solver_table(config, solver, 20)
        assert np.isfinite([[number for number in step if number != np.inf] for step in table]).all()
        _, clean = solver_step(table[0], x, zero, prediction)
        np.testing.assert_allclose(clean, -prediction, atol=1e-3)  # DPM-Solver++ has diffusers' 2**-24 of the signal
        for wrong in ({"rescale_betas_zero_snr": False}, {"timestep_spacing": "leading"}):
            assert not equal(solver_table(config | wrong, solver, 20), theirs(config, solver, 20))


def test_the_solvers_are_not_the_same(theirs):
    config = SD15 | {"timestep_spacing": "trailing"}
    assert not equal(solver_table(config, "ddim", 20), theirs(config, "dpm++", 20))


@pytest.mark.parametrize(
    ("solver", "key", "wrong", "config"),
    [("dpm++", "timestep_spacing", "leading", SD15), ("dpm++", "timestep_spacing", "trailing", SD15),
     ("ddim", "timestep_spacing", "linspace", SD15), ("ddim", "timestep_spacing", "trailing", SD15),
     ("dpm++", "steps_offset", 1, {"_class_name": "PNDMScheduler", **BETAS, "timestep_spacing": "leading"}),
     ("ddim", "steps_offset", 1, CONFIGS["old"]), ("ddim", "clip_sample", False, CONFIGS["old"]),
     ("ddim", "clip_sample_range", 2.0, CONFIGS["old"]), ("ddim", "set_alpha_to_one", False, CONFIGS["old"]),
     ("dpm++", "final_sigmas_type", "sigma_min", SD15),
     ("dpm++", "lower_order_final", False, CONFIGS["dpm to sigma_min"]),
     ("dpm++", "euler_at_final", True, CONFIGS["dpm second order to the end"])],
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
        theirs = CLASSES[solver].from_config(pipe.scheduler.config)
        theirs.set_timesteps(7)
        assert equal(solver_table(as_in_pipeline(CONFIGS[name]), solver, 7), theirs)
        if "offset" in name:  # the test could tell
            assert not equal(solver_table(CONFIGS[name], solver, 7), theirs)


def test_the_end_is_the_predicted_clean_image():
    x, previous, prediction = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    *_, last = solver_table(SD15, "dpm++", 25)
    latents, clean = solver_step(last, x, previous, prediction)
    schedule = noise_schedule(SD15)
    expected = (x - schedule.sigma(last.timestep) * prediction) / schedule.signal(last.timestep)
    np.testing.assert_allclose(clean, expected, rtol=1e-5)
    assert np.array_equal(latents, clean)


def test_jax_and_torch_go_through_the_same_lines():
    jnp = pytest.importorskip("jax.numpy")
    x, previous, prediction = np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)
    for solver in SOLVERS:
        for row in solver_table(CONFIGS["clipped v"], solver, 3):
            expected = solver_step(row, x, previous, prediction)
            for convert in (jnp.asarray, torch.from_numpy):
                for ours, numpy in zip(
                    solver_step(row, *map(convert, (x, previous, prediction))), expected, strict=True
                ):
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
     ("dpm++", 999, "inference steps 999 with the scheduler's steps_offset=1 begin beyond the last")],
)  # fmt: skip
def test_more_steps_than_the_schedule_has_room_for(solver, steps, message):
    with pytest.raises(UserError, match=message):
        solver_table(SD15 | {"timestep_spacing": "leading"}, solver, steps)


def test_guidance_of_one_needs_no_negative_prompt():
    assert [is_guided(scale) for scale in (0.0, 1.0, 1.01, 7.5)] == [False, False, True, True]
