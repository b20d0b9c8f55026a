"""The loop needs no framework: whole jobs with a backend in NumPy."""

import json
import shutil

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from fake_backend import TRAINED, FakeBackend, watched
from PIL import Image
from safetensors.numpy import load_file

from booth.common.errors import UserError
from booth.data.inputs import preview_batch_size
from booth.diffusion.objective import dreambooth_loss, noisy_latents
from booth.train import loop, result
from booth.train.trained_run import find_trained

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def config(tiny_config):
    tiny_config.train.learning_rate = 0.05
    tiny_config.log.every_steps = 3
    return tiny_config


def trained(folder):
    return load_file(folder / "pipeline" / UNET)[TRAINED]


def test_the_gradient_of_the_fake_is_right():
    """By finite differences: the jobs below show something only if the fake learns."""
    rng = np.random.default_rng(0)
    from booth.diffusion.backend import Batch

    def rows(*shape):
        return rng.standard_normal((3, *shape))

    batch = Batch(rows(2, 2, 4), rows(2, 2, 4), np.zeros(3), rows(), rows(), rows(), rows(), np.array([0.5, 0.5, 0.3]),
                  np.array([0.5, 0.5, 0]), np.array([0, 0, 1.0]), np.ones(3), rng.random((3, 2, 2, 1)), np.zeros(3),
                  rows(1, 1), {"unet": np.array(1.0)})  # fmt: skip
    backend, bias = FakeBackend(None), rng.standard_normal(4)

    def loss(bias):
        return dreambooth_loss(noisy_latents(batch) + bias, batch)[0]

    state = backend.init(backend.load(type("", (), {"tensors": lambda self, name: {TRAINED: bias}})()))
    after, _ = backend.train_step(state, batch)
    numeric = [(loss(bias + 1e-6 * unit) - loss(bias - 1e-6 * unit)) / 2e-6 for unit in np.eye(4)]
    assert bias - after.models.bias == pytest.approx(numeric, rel=1e-4)


def test_a_whole_job_without_a_framework(config, tmp_path):
    config.train.steps, config.samples.every_steps, config.samples.inference_steps = 30, 15, 2
    config.checkpoint.every_steps, config.checkpoint.keep = 10, 2
    run = loop.train(FakeBackend, config, tmp_path / "run")
    assert [line["step"] for line in run.metrics] == list(range(1, 31))
    assert np.mean([line["loss"] for line in run.metrics[-5:]]) < np.mean([line["loss"] for line in run.metrics[:5]])
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["step-000020", "step-000030"]
    assert sorted(path.name for path in (run.path / "samples").iterdir()) == ["step-000015.png", "step-000030.png"]
    source = load_file(f"{config.model.source}/{UNET}")
    weights = load_file(run.pipeline / UNET)
    assert {name for name in source if not np.array_equal(source[name], weights[name])} == {TRAINED}
    assert json.loads((run.pipeline / "export.json").read_text())["step"] == 30
    assert not list(run.path.rglob(".staging-*"))


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "prior", "guidance", "images"),
    [(1, 1, 1.0, 7.5, 1), (1, 1, 0.0, 7.5, 1), (1, 1, 1.0, 1.0, 2), (3, 1, 1.0, 7.5, 3), (3, 1, 0.0, 7.5, 1),
     (4, 2, 1.0, 7.5, 2), (4, 4, 1.0, 7.5, 1), (2, 1, 0.5, 0.0, 4)],
)  # fmt: skip
def test_a_preview_takes_no_more_rows_than_a_training_pass(config, batch_size, accumulation, prior, guidance, images):
    config.train.batch_size, config.train.accumulation = batch_size, accumulation
    config.prior.weight, config.samples.guidance = prior, guidance
    assert preview_batch_size(config) == images


def test_a_preview_is_one_grid_of_all_prompts_and_seeds(config, tmp_path):
    """Sampled in full batches of one size; the image of a prompt and a seed is the same in every grid."""
    sizes = []

    class Watched(FakeBackend):
        def sample(self, models, noise, *arguments):
            sizes.append(len(noise))
            return super().sample(models, noise, *arguments)

    config.prior.weight = 0.0
    config.train.batch_size, config.train.steps, config.samples.every_steps = 4, 1, 1
    config.samples.prompts, config.samples.inference_steps = ("a robot", "a toy", "a lamp"), 2
    grids = {}
    for count in (1, 3):
        config.samples.images_per_prompt = count
        run = loop.train(Watched, config, tmp_path / f"run{count}")
        assert [path.name for path in (run.path / "samples").iterdir()] == ["step-000001.png"]
        with Image.open(run.path / "samples" / "step-000001.png") as picture:
            grids[count] = np.asarray(picture)
    assert sizes == [2] * (2 + 5)
    assert grids[3].shape[0] == grids[1].shape[0], "three prompts one below the other"
    first_column = grids[3][:, : grids[1].shape[1] - 8]
    assert np.array_equal(first_column, grids[1][:, :-8]), "seed 0"
    second, third = (grids[3][:190, 8 + 200 * place : 200 + 200 * place] for place in (1, 2))
    assert not np.array_equal(second, third)


def test_a_scheduler_that_a_solver_cannot_follow(config, tiny_pipeline, tmp_path):
    config.model.source = str(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_karras_sigmas": True}))
    with pytest.raises(
        UserError, match=r"^prior\.solver: scheduler: use_karras_sigmas=true .* or take the solver ddim$"
    ):
        loop.train(FakeBackend, config, tmp_path / "run")
    config.prior.solver = "ddim"
    loop.train(FakeBackend, config, tmp_path / "run")


def test_resumed_equals_uninterrupted(config, tmp_path):
    whole = loop.train(FakeBackend, config, tmp_path / "whole")
    config.train.steps = 3
    loop.train(FakeBackend, config, tmp_path / "parts")
    config.train.steps = 4
    backend_class = watched()
    parts = loop.train(backend_class, config, tmp_path / "parts")
    assert backend_class.calls == ["train_step", "save"], "nothing is sampled, encoded or trained twice"
    assert np.array_equal(trained(parts.path), trained(whole.path))
    assert [line["loss"] for line in parts.metrics] == [line["loss"] for line in whole.metrics]


def test_an_interrupted_step_is_done_again(config, tmp_path):
    """Stopped in step 4, after the checkpoint of step 2."""
    config.checkpoint.every_steps = 2
    whole = loop.train(FakeBackend, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        loop.train(watched(("train_step", 4)), config, tmp_path / "run")
    again = loop.train(FakeBackend, config, tmp_path / "run")
    assert [line["step"] for line in again.metrics] == [1, 2, 3, 4]
    assert np.array_equal(trained(again.path), trained(whole.path))


def test_previews_that_were_interrupted_are_made_on_resume(config, tmp_path):
    """Those of a step that was saved before: the others come again with their updates."""
    config.samples.every_steps, config.samples.inference_steps, config.checkpoint.every_steps = 2, 2, 2
    config.samples.images_per_prompt = 1
    whole = loop.train(FakeBackend, config, tmp_path / "whole")
    for sample in (2, 3):  # the first makes the class images, then come the previews of steps 2 and 4
        with pytest.raises(KeyboardInterrupt):
            loop.train(watched(("sample", sample)), config, tmp_path / f"run{sample}")
        again = loop.train(FakeBackend, config, tmp_path / f"run{sample}")
        for name in ("step-000002.png", "step-000004.png"):
            assert (again.path / "samples" / name).read_bytes() == (whole.path / "samples" / name).read_bytes()


def test_damaged_files_of_a_run(config, tmp_path):
    """A cut checkpoint is named and the way it names works; what is cut in the cache is encoded again."""
    whole = loop.train(FakeBackend, config, tmp_path / "whole")
    config.checkpoint.every_steps, config.train.steps = 1, 3
    run = loop.train(FakeBackend, config, tmp_path / "run")
    cut = run.path / "checkpoints" / "step-000003" / "state.npz"
    cut.write_bytes(cut.read_bytes()[:40])
    config.train.steps = 4
    with pytest.raises(UserError, match=r"step-000003 is damaged \(.*--from-step 2"):
        loop.train(FakeBackend, config, run.path)
    for file, size in zip(sorted((run.path / "cache").iterdir()), (0, 10, 200), strict=False):
        file.write_bytes(file.read_bytes()[:size])
    backend_class = watched()
    again = loop.train(backend_class, config, run.path, from_step=2)
    assert "encode_images" in backend_class.calls
    assert np.array_equal(trained(again.path), trained(whole.path))
    assert [line["loss"] for line in again.metrics] == [line["loss"] for line in whole.metrics]
    for file in (run.path / "cache").iterdir():
        np.load(file)


def test_a_finished_run_has_nothing_left_to_do(config, tmp_path):
    loop.train(FakeBackend, config, tmp_path / "run")
    config.checkpoint.keep = 5
    backend_class = watched()
    assert len(loop.train(backend_class, config, tmp_path / "run").metrics) == 4
    config.train.steps = 2  # fewer than are done
    loop.train(backend_class, config, tmp_path / "run")
    assert backend_class.calls == []


def test_a_finished_run_is_exported_again_in_another_precision(config, tmp_path):
    loop.train(FakeBackend, config, tmp_path / "run")
    before = trained(tmp_path / "run")
    config.export.precision = "fp16"
    backend_class = watched()
    loop.train(backend_class, config, tmp_path / "run")
    assert trained(tmp_path / "run").dtype == np.float16
    assert np.array_equal(trained(tmp_path / "run"), before.astype(np.float16))
    assert backend_class.calls == []


def test_a_run_killed_before_its_pipeline_was_written_only_writes_it(config, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(result, "export", killed)
        loop.train(FakeBackend, config, tmp_path / "run")
    backend_class = watched()
    assert loop.train(backend_class, config, tmp_path / "run").pipeline.is_dir()
    assert backend_class.calls == []


def test_a_refused_resume_leaves_the_record_as_it_was(config, tmp_path, photos):
    config.instance.images = str(shutil.copytree(photos, tmp_path / "photos"))
    run = loop.train(FakeBackend, config, tmp_path / "run")
    before = (run.path / "config.json").read_bytes()
    config.train.steps = 6
    with pytest.raises(UserError, match="step 3 has no checkpoint"):
        loop.train(FakeBackend, config, run.path, from_step=3)
    assert (run.path / "config.json").read_bytes() == before
    next((tmp_path / "photos").iterdir()).unlink()
    with pytest.raises(UserError, match="instance images changed"):
        loop.train(FakeBackend, config, run.path)
    assert (run.path / "config.json").read_bytes() == before


def test_other_work_than_training_is_not_counted_into_the_speed(config, tmp_path, monkeypatch):
    """Each look at the clock takes a second, a checkpoint an hour: the speeds do not know of the hour."""
    clock = iter(range(10**6))
    monkeypatch.setattr("booth.train.metrics.time.perf_counter", lambda: next(clock))

    class Slow(FakeBackend):
        def save(self, state, folder):
            for _ in range(3600):
                next(clock)
            super().save(state, folder)

    config.checkpoint.every_steps, config.log.every_steps = 1, 1
    run = loop.train(Slow, config, tmp_path / "run")
    assert min(line["samples_per_s"] for line in run.metrics) > 1


def test_more_rows_than_photos(config, tmp_path):
    config.train.batch_size, config.train.steps = 7, 3
    run = loop.train(FakeBackend, config, tmp_path / "run")
    assert all(np.isfinite(line["loss"]) for line in run.metrics)


def test_one_photo_is_enough(config, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 100), "teal").save(tmp_path / "photos" / "only.png")
    config.instance.images, config.prior.count = str(tmp_path / "photos"), 1
    assert len(loop.train(FakeBackend, config, tmp_path / "run").metrics) == 4


def test_paths_may_be_relative_and_begin_at_home(config, tmp_path, monkeypatch, tiny_pipeline, photos):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").symlink_to(tiny_pipeline)
    (tmp_path / "photos").symlink_to(photos)
    config.model.source, config.instance.images = "~/model/", "photos/"
    config.checkpoint.dir, config.prior.images = "elsewhere/checkpoints", "~/class/robots"
    run = loop.train(FakeBackend, config, "~/run")
    assert run.path == tmp_path / "run"
    assert (tmp_path / "elsewhere" / "checkpoints" / "step-000004").is_dir()
    assert len(list((tmp_path / "class" / "robots").glob("*.png"))) == 2
    recorded = json.loads((run.path / "config.json").read_text())["config"]
    assert recorded["checkpoint.dir"] == str(tmp_path / "elsewhere" / "checkpoints")
    # The same run, given from another folder in another spelling.
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    config.model.source, config.instance.images = str(tmp_path / "model"), f"{tmp_path}/photos"
    config.checkpoint.dir, config.prior.images = f"{tmp_path}/elsewhere/checkpoints/", f"{tmp_path}/class/robots"
    config.train.steps = 5
    assert len(loop.train(FakeBackend, config, tmp_path / "run").metrics) == 5


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("data.resolution", 60, r"data\.resolution: image size 60x60 must be a multiple of 8"),
     ("prior.inference_steps", 1001, r"prior\.inference_steps: inference steps 1001 must be from 1 to 999"),
     ("samples.inference_steps", 1001, r"samples\.inference_steps: inference steps 1001 must be from 1 to 999"),
     ("prior.solver", "heun", r"prior\.solver='heun' must be one of 'dpm\+\+', 'ddim', 'euler', 'euler_a', 'pndm'"),
     ("train.steps", -1, r"train\.steps=-1 must be at least 1, or 'auto'"),
     ("instance.images", "/nowhere", r"instance\.images='/nowhere' is not a folder"),
     ("prior.images", __file__, r"prior\.images='.*' is not a folder"),
     ("model.source", "/nowhere", r"model\.source=/nowhere: no such folder")],
)  # fmt: skip
def test_refused_before_anything_is_written(config, tmp_path, field, value, said):
    section, _, key = field.partition(".")
    config.samples.every_steps = 1
    config[section][key] = value
    backend_class = watched()
    with pytest.raises(UserError, match=said):
        loop.train(backend_class, config, tmp_path / "run")
    assert not (tmp_path / "run").exists() and backend_class.calls == []


def test_unreadable_class_images_are_refused_before_anything_is_written(config, tmp_path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "mine.jpg").touch()
    config.prior.images = str(tmp_path / "class")
    with pytest.raises(UserError, match=r"prior\.images: 1 of 1 images cannot be read: mine\.jpg"):
        loop.train(FakeBackend, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_photo_changed_between_two_sessions_is_refused(config, photos, tmp_path):
    config.instance.images = str(shutil.copytree(photos, tmp_path / "photos"))
    loop.train(FakeBackend, config, tmp_path / "run")
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "robot-3.png")
    config.train.steps = 6
    backend_class = watched()
    with pytest.raises(UserError, match=r"instance images changed since this run began \(robot-3\.png\)"):
        loop.train(backend_class, config, tmp_path / "run")
    assert backend_class.calls == []


def test_a_class_image_changed_between_two_sessions_is_refused(config, photos, tmp_path):
    config.prior.images = str(shutil.copytree(photos, tmp_path / "class"))
    loop.train(FakeBackend, config, tmp_path / "run")
    config.train.steps, config.prior.count = 6, 7
    loop.train(FakeBackend, config, tmp_path / "run")  # more of them are no change
    Image.new("RGB", (64, 64)).save(tmp_path / "class" / "robot-1.png")
    config.train.steps = 8
    backend_class = watched()
    with pytest.raises(UserError, match=r"class images changed since this run began \(robot-1\.png\)"):
        loop.train(backend_class, config, tmp_path / "run")
    assert "train_step" not in backend_class.calls


@pytest.mark.parametrize("inside", ["photos", "photos/../photos", "link"])
def test_class_images_do_not_lie_among_the_photos(config, photos, tmp_path, inside):
    config.instance.images = str(shutil.copytree(photos, tmp_path / "photos"))
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    config.prior.images = str(tmp_path / inside)
    with pytest.raises(UserError, match=r"prior\.images=.* is also instance.images"):
        loop.train(FakeBackend, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.prior.images = str(tmp_path / "photos" / "class")
    loop.train(FakeBackend, config, tmp_path / "run")


def test_an_incomplete_model_is_named(config, tiny_pipeline, tmp_path):
    config.model.source = str(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    (tmp_path / "model" / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=r"^\S+/vae/config\.json cannot be read"):
        loop.train(FakeBackend, config, tmp_path / "run")


def test_a_moved_model_and_moved_photos_are_the_same_run(config, photos, tiny_pipeline, tmp_path):
    """Paths may change; what is in them may not, the scheduler's config included."""
    config.train.steps = 2
    loop.train(FakeBackend, config, tmp_path / "run")
    config.instance.images = str(shutil.copytree(photos, tmp_path / "moved photos"))
    config.model.source = str(shutil.copytree(tiny_pipeline, tmp_path / "moved model"))
    config.train.steps = 4
    run = loop.train(FakeBackend, config, tmp_path / "run")
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4]
    scheduler = tmp_path / "moved model" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"epsilon"', '"v_prediction"'))
    with pytest.raises(UserError, match=r"model configs changed since this run began \(scheduler\)"):
        loop.train(FakeBackend, config, tmp_path / "run")


def test_zero_terminal_snr_is_trained_sampled_and_exported(config, tiny_sd2_pipeline, tmp_path):
    """By a model whose scheduler class would pass over it; what the base makes is as the base's own config says."""
    config.model.source = str(shutil.copytree(tiny_sd2_pipeline, tmp_path / "model"))
    for name, old in (("model_index.json", "DDIMScheduler"), ("scheduler/scheduler_config.json", "DDIMScheduler")):
        path = tmp_path / "model" / name
        path.write_text(path.read_text().replace(old, "PNDMScheduler"))
    config.train.steps, config.samples.every_steps, config.samples.inference_steps = 2, 1, 2
    config.samples.before_after = True
    seen = {}

    class Watched(FakeBackend):
        def sample(self, models, noise, context, negative_context, table, *rest):
            tables.append([step.timestep for step in table])
            return super().sample(models, noise, context, negative_context, table, *rest)

        def train_step(self, state, batch):
            last = batch.timestep > 900
            signals.extend(zip(batch.timestep[last].tolist(), batch.signal[last].tolist(), strict=True))
            return super().train_step(state, batch)

    for zero in (False, True):
        tables, signals = [], []
        config.train.zero_terminal_snr, config.train.seed = zero, 7
        run = loop.train(Watched, config, tmp_path / f"run {zero}")
        seen[zero] = run, tables, dict(signals)
    (plain, plain_tables, plain_signals), (run, tables, signals) = seen[False], seen[True]
    assert signals.keys() == plain_signals.keys() and signals
    assert all(signals[timestep] < plain_signals[timestep] for timestep in signals)
    assert np.isfinite([line["loss"] for line in run.metrics]).all()
    own = plain_tables[0]
    assert set(map(tuple, plain_tables)) == {tuple(own)} and own[0] < 999
    assert [table == own for table in tables] == [True] * 3 + [False] * 6, "class images, the base's pictures; ours"
    assert all(table == tables[-1] and table[0] == 999 for table in tables[3:])
    same = {name: (run.path / name).read_bytes() == (plain.path / name).read_bytes() for name in (
        "class_images/class-00000.png", "samples/step-000001.png", "pipeline/scheduler/scheduler_config.json",
        "pipeline/model_index.json", "pipeline/tokenizer/tokenizer_config.json")}  # fmt: skip
    assert list(same.values()) == [True, False, False, False, True]
    record = json.loads((run.pipeline / "export.json").read_text())["changed_files"]
    assert {"scheduler/scheduler_config.json", "model_index.json"} <= record.keys()

    scheduler = DiffusionPipeline.from_pretrained(run.pipeline).scheduler
    assert type(scheduler).__name__ == "DDIMScheduler" and scheduler.alphas_cumprod[-1] == 0
    assert (scheduler.config.timestep_spacing, scheduler.config.prediction_type) == ("trailing", "v_prediction")
    of_checkpoint = find_trained(FakeBackend, str(run.path), None, "fp32").pipeline
    assert of_checkpoint.component_config("scheduler").items() >= {"rescale_betas_zero_snr": True}.items()


def test_zero_terminal_snr_is_for_velocities(config, tmp_path):
    config.train.zero_terminal_snr = True
    with pytest.raises(UserError, match=r"^train\.zero_terminal_snr=true needs a model .*, not 'epsilon': .*to false$"):
        loop.train(FakeBackend, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
