"""Known defects of the scripts people train with today: ours is compared with the right value, and so is theirs.

Each test runs the defective formula too and shows that the comparison rejects it.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from fake_backend import TRAINED, FakeBackend, Models, State, watched
from PIL import Image
from safetensors.numpy import load_file

from booth.common.errors import UserError
from booth.config import values as settings
from booth.config.texts import parse_text
from booth.data.image_folder import find_images
from booth.data.images import read_examples
from booth.data.views import views
from booth.diffusion.backend import WEIGHT_FIELDS
from booth.diffusion.objective import dreambooth_loss
from booth.diffusion.schedule import noise_schedule
from booth.train import loop
from booth.train.batches import Batches, TrainingImage, _order, made_ahead
from booth.train.checkpoints import Checkpoints


def trained_bias(run):
    return load_file(run.pipeline / "unet" / "diffusion_pytorch_model.safetensors")[TRAINED]


SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def make_batches(tmp_path):
    """Batches over five photos and three class images with made-up moments."""
    for kind, count in (("instance", 5), ("prior", 3)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            Image.new("RGB", (64, 64), (40 * number, 80, 90)).save(tmp_path / kind / f"{number}.png")

    def make(scheduler=SD15, batch_size=2, seed=0, std=1.0, **more):
        shown = {
            kind: [views(example, (64, 64), "center", 1, False, seed)
                   for example in read_examples(find_images(tmp_path / kind, kind), kind, kind, kind)]
            for kind in ("instance", "prior")
        }  # fmt: skip
        every = [view for images in shown.values() for choices in images for view in choices]
        moments = {view: np.stack([np.full((8, 8, 4), n, np.float32), np.full((8, 8, 4), std, np.float32)])
                   for n, view in enumerate(every)}  # fmt: skip
        images = {"instance": [TrainingImage(seen, [0]) for seen in shown["instance"]],
                  "prior": [TrainingImage(seen, [1], weight=0.3) for seen in shown["prior"]]}  # fmt: skip
        return Batches(images, moments, np.zeros((2, 77, 8), np.float32), noise_schedule(scheduler), 1.0, 0.0,
                       batch_size, seed, **more)  # fmt: skip

    return make


def test_lambda_stays_on_the_class_rows_when_rows_are_sharded(make_batches):
    """The Flax script split the local batch into halves after sharding: both kinds ended with (1 + lambda) / 2."""
    batch = make_batches()(0, {})
    prediction = np.random.default_rng(0).standard_normal(batch.latents.shape).astype(np.float32)
    row = ((prediction - batch.noise) ** 2).mean((1, 2, 3))
    right = row[:2].mean() + 0.3 * row[2:].mean()

    def sharded(loss_of_shard):
        # Two devices with two rows each, the loss summed over devices.
        return sum(loss_of_shard(slice(first, first + 2)) for first in (0, 2))

    def ours(rows):
        names = ("latents", "noise", "target_latent", "target_noise", *WEIGHT_FIELDS, "mask")
        part = {name: getattr(batch, name)[rows] for name in names}
        return dreambooth_loss(prediction[rows], replace(batch, **part))[0]

    def theirs(rows):
        first, second = np.split(row[rows], 2)
        return (first.mean() + 0.3 * second.mean()) / 2  # averaged over the two devices

    assert sharded(ours) == pytest.approx(right, rel=1e-6)
    assert sharded(theirs) != pytest.approx(right, rel=1e-2)


def test_min_snr_weighs_class_rows_by_their_own_timesteps(make_batches):
    """The script multiplied the photos' losses with the weights of all rows, and the class images' with none.

    That is a shape error, except at batch 1, where the photo's loss gets the mean of both rows' weights.
    """
    batches = make_batches(min_snr_gamma=5.0, batch_size=1)
    batch = next(batch for batch in (batches(step, {}) for step in range(50)) if batch.prior_weight.max() < 0.5)
    prediction = np.random.default_rng(0).standard_normal(batch.latents.shape).astype(np.float32)
    row = ((prediction - batch.noise) ** 2).mean((1, 2, 3))
    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[batch.timestep]
    snr = alpha_bar / (1 - alpha_bar)
    weight = np.minimum(snr, 5) / snr
    right = weight * row
    theirs = (weight * row[:1]).mean(), row[1]
    loss, parts = dreambooth_loss(prediction, batch)
    assert loss == pytest.approx(right[0] + 0.3 * right[1], rel=1e-5)
    assert (parts["instance_loss"], parts["prior_loss"]) == pytest.approx(right, rel=1e-5)
    assert loss != pytest.approx(theirs[0] + 0.3 * theirs[1], rel=1e-2)


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_an_update_is_whole_however_it_is_accumulated(make_batches, pieces):
    """At the end of an epoch the script summed fewer pieces and still divided by the full number.

    Five photos in updates of four: every second update runs over the end of an epoch.
    """
    batches = make_batches(batch_size=4)
    for step in range(3):
        batch = batches(step, {})
        parts = batch.pieces(pieces)
        prediction = np.random.default_rng(0).standard_normal(batch.latents.shape).astype(np.float32)
        predicted = [replace(batch, noise=prediction).pieces(pieces)[piece].noise for piece in range(pieces)]
        losses = [dreambooth_loss(p, part)[0] for p, part in zip(predicted, parts, strict=True)]
        whole = dreambooth_loss(prediction, batch)[0]
        assert all(len(part.latents) == 8 // pieces and part.instance_weight.any() for part in parts)
        assert all(part.prior_weight.any() for part in parts), "each piece has rows of both kinds"
        assert sum(losses) == pytest.approx(whole, rel=1e-6)
        if pieces > 1:  # each is divided by the full number already
            assert sum(losses[:-1]) != pytest.approx(whole, rel=1e-2)


def test_the_schedule_and_the_target_come_from_the_pipeline(make_batches):
    """The Flax script hard-coded SD1's betas and epsilon, so v-prediction models trained on the wrong target."""
    config = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "v_prediction"}
    batch = make_batches(config)(3, {})
    alpha_bar = np.cumprod(1 - np.linspace(0.001, 0.02, 1000))[batch.timestep]
    column = (slice(None), None, None, None)
    velocity = np.sqrt(alpha_bar)[column] * batch.noise - np.sqrt(1 - alpha_bar)[column] * batch.latents
    assert dreambooth_loss(velocity.astype(np.float32), batch)[0] < 1e-10
    hard_coded = make_batches(SD15)(3, {})
    assert dreambooth_loss(velocity.astype(np.float32), hard_coded)[0] > 0.1


def test_posterior_and_noise_are_drawn_apart(make_batches):
    """The Flax script sampled the posterior with the key that it also derived the noise from.

    At worst both are the same numbers: with unit moments the latents' sample then equals the noise.
    """
    batch = make_batches()(0, {})
    sample = batch.latents - batch.latents.mean((1, 2, 3), keepdims=True)
    for row in range(4):
        assert abs(np.corrcoef(sample[row].ravel(), batch.noise[row].ravel())[0, 1]) < 0.3
    reused = batch.noise - batch.noise.mean((1, 2, 3), keepdims=True)
    assert np.corrcoef(reused[0].ravel(), batch.noise[0].ravel())[0, 1] > 0.99


def test_resuming_inside_an_epoch_goes_on_in_its_order(make_batches):
    """The PyTorch script shuffles the epoch anew on resume and skips ahead in another order."""
    batches = make_batches(std=0.0)  # latents then tell which image a row shows

    def shown(start, stop):
        return [batch.latents[:2, 0, 0, 0].tolist() for _, batch in made_ahead(lambda s: batches(s, {}), start, stop)]

    whole = shown(0, 10)
    assert shown(0, 3) + shown(3, 10) == whole
    epochs = np.array(whole).reshape(-1, 5)
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs.tolist()), "an epoch shows every photo once"
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1, "epochs differ in order"


def test_resuming_inside_an_epoch_as_the_script_does():
    """Its loader draws an order when it is iterated, from a generator that begins again with the process."""

    def theirs(start, stop, photos=5):
        generator = np.random.default_rng(0)
        order = [place for _ in range(stop) for place in generator.permutation(photos).tolist()]
        skipped = start % photos  # "resume_step": so many batches of the first epoch drawn are skipped
        return order[skipped : skipped + stop - start]

    def ours(start, stop, photos=5):
        return [int(_order(0, "instance", 0, photos, step // photos)[step % photos]) for step in range(start, stop)]

    def resumes_exactly(shown):
        return shown(0, 8) + shown(8, 20) == shown(0, 20)

    assert resumes_exactly(ours)
    assert not resumes_exactly(theirs)
    assert theirs(0, 3) + theirs(3, 5) == theirs(0, 5), "in the first epoch the script is right"


def test_class_images_take_nothing_from_trainings_randomness(tiny_config, tmp_path):
    """The scripts draw class images and training noise from one generator."""

    seen = []

    class Ours(FakeBackend):
        def train_step(self, state, batch):
            seen.append(batch.noise)
            return super().train_step(state, batch)

    class Theirs(Ours):
        def __init__(self, config):
            super().__init__(config)
            self.generator = np.random.default_rng(0)

        def sample(self, models, noise, *rest):
            return super().sample(models, self.generator.standard_normal(noise.shape), *rest)

        def train_step(self, state, batch):
            return super().train_step(state, replace(batch, noise=self.generator.standard_normal(batch.noise.shape)))

    def noise_with(class_images, backend_class):
        seen.clear()
        tiny_config.prior.count = class_images
        loop.train(backend_class, tiny_config, tmp_path / f"{backend_class.__name__}-{class_images}")
        return np.stack(seen)

    def is_the_same(backend_class):
        return np.array_equal(noise_with(1, backend_class), noise_with(5, backend_class))

    assert is_the_same(Ours)
    assert not is_the_same(Theirs)


def test_a_failing_save_costs_no_checkpoint(tmp_path):
    """The script made room for the new checkpoint first."""

    class FullDisk(FakeBackend):
        def save(self, state, folder):
            raise OSError("No space left on device")

    state = State(Models({TRAINED: np.zeros(4)}), np.zeros(4))

    def theirs(checkpoints, backend, step):
        for old in checkpoints.steps():
            shutil.rmtree(checkpoints.path(old))
        checkpoints.save(backend, state, step, keep=1)

    def ours(checkpoints, backend, step):
        checkpoints.save(backend, state, step, keep=1)

    def left_by(save):
        checkpoints = Checkpoints(tmp_path / save.__name__, "run")
        save(checkpoints, FakeBackend(None), 1)
        with pytest.raises(UserError, match="cannot be written"):
            save(checkpoints, FullDisk(None), 2)
        return checkpoints.steps()

    assert left_by(ours) == [1]
    assert left_by(theirs) == []


def test_the_learning_rate_given_on_resume_counts(tiny_config, tmp_path):
    """Loading the optimizer's state brought its old learning rate back."""

    class Theirs(FakeBackend):
        def restore(self, state, folder):
            self.kept = {"unet": np.float32(1e-3)}  # as saved with the optimizer
            return super().restore(state, folder)

        def train_step(self, state, batch):
            return super().train_step(state, replace(batch, learning_rate=getattr(self, "kept", batch.learning_rate)))

    def third_step(backend_class, learning_rate):
        """How far step 3 goes, resumed after two steps at 1e-3."""
        folder, config = tmp_path / f"{backend_class.__name__}-{learning_rate}", tiny_config
        config.train.steps, config.train.learning_rate = 2, 1e-3
        before = trained_bias(loop.train(backend_class, config, folder))
        config.train.steps, config.train.learning_rate = 3, learning_rate
        return trained_bias(loop.train(backend_class, config, folder)) - before

    right = third_step(FakeBackend, 1e-3) / 10
    assert np.abs(right).min() > 0
    assert third_step(FakeBackend, 1e-4) == pytest.approx(right, rel=1e-2)
    assert third_step(Theirs, 1e-4) != pytest.approx(right, rel=1e-2)


def test_a_finished_run_trains_no_further_step(tiny_config, tmp_path, monkeypatch):
    """The script looked at the bound after the step, so each repetition trained one more."""

    def theirs(make, start, stop):
        return made_ahead(make, start, max(stop, start + 1))

    def steps_of_a_repetition(batches):
        folder = tmp_path / batches.__name__
        monkeypatch.setattr(loop, "made_ahead", batches)
        tiny_config.export.precision = "source"
        loop.train(FakeBackend, tiny_config, folder)
        tiny_config.export.precision = "fp16"  # so that the repetition has something to do
        backend_class = watched()
        loop.train(backend_class, tiny_config, folder)
        return backend_class.calls.count("train_step")

    assert steps_of_a_repetition(made_ahead) == 0
    assert steps_of_a_repetition(theirs) == 1


def test_hidden_files_and_directory_order_do_not_matter(tmp_path):
    """A .DS_Store crashed the scripts, and files came in directory order."""
    for number in (10, 2, 1):
        Image.new("RGB", (8, 8)).save(tmp_path / f"dog {number}.JPG", format="JPEG")
    for stray in (".DS_Store", "Thumbs.db", "notes.txt", "._dog 1.jpg"):
        (tmp_path / stray).write_bytes(b"\0\0")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find_images(tmp_path, "instance.images")] == ["dog 1.JPG", "dog 2.JPG", "dog 10.JPG"]
    with pytest.raises(Exception, match="cannot identify"):
        for path in tmp_path.iterdir():  # the scripts' way
            Image.open(path) if path.is_file() else None


def test_false_is_false():
    """`type=bool` read the text "False" as true."""
    config = settings.default_config()
    for text in ("False", "false", "no"):
        settings.set_field(config, "data.flip", parse_text("data.flip", text))
        assert config.data.flip is False
    assert bool("False") is True, "the scripts' way"
    with pytest.raises(UserError, match="must be true or false"):
        settings.set_field(config, "data.flip", parse_text("data.flip", "0"))


def test_learned_variance_uses_the_first_half(make_batches):
    batch = make_batches()(0, {})
    doubled = np.concatenate([batch.noise, np.full_like(batch.noise, 9.0)], axis=-1)
    assert dreambooth_loss(doubled, batch)[0] < 1e-10
    assert dreambooth_loss(doubled[..., 4:], batch)[0] > 1
