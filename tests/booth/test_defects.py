"""Known defects of the scripts people train with today: ours is compared with the right value, and so is theirs.

Each test runs the defective formula too and shows that the comparison rejects it.
"""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from booth import config as settings
from booth.batches import Batches, made_ahead
from booth.data import find_images, read_examples, views
from booth.objective import dreambooth_loss
from booth.schedule import noise_schedule

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def make_batches(tmp_path):
    """Batches over five photos and three class images with made-up moments."""
    for kind, count in (("instance", 5), ("prior", 3)):
        (tmp_path / kind).mkdir()
        for number in range(count):
            Image.new("RGB", (64, 64), (40 * number, 80, 90)).save(tmp_path / kind / f"{number}.png")

    def make(scheduler=SD15, batch_size=2, seed=0, std=1.0):
        shown = {
            kind: [views(example, 64, "center", 1, False, seed)
                   for example in read_examples(find_images(tmp_path / kind, kind), kind, kind, kind)]
            for kind in ("instance", "prior")
        }  # fmt: skip
        every = [view for images in shown.values() for choices in images for view in choices]
        moments = {view: np.stack([np.full((8, 8, 4), n, np.float32), np.full((8, 8, 4), std, np.float32)])
                   for n, view in enumerate(every)}  # fmt: skip
        return Batches(shown, moments, {"instance": 1.0, "prior": 0.3}, np.zeros((2, 77, 8), np.float32),
                       {"instance": 0, "prior": 1}, noise_schedule(scheduler), 1.0, 0.0, batch_size, seed)  # fmt: skip

    return make


def test_lambda_stays_on_the_class_rows_when_rows_are_sharded(make_batches):
    """The Flax script split the local batch into halves after sharding: both kinds ended with (1 + lambda) / 2."""
    batch = make_batches()(0, 1e-4)
    prediction = np.random.default_rng(0).standard_normal(batch.latents.shape).astype(np.float32)
    row = ((prediction - batch.noise) ** 2).mean((1, 2, 3))
    right = row[:2].mean() + 0.3 * row[2:].mean()

    def sharded(loss_of_shard):
        # Two devices with two rows each, the loss summed over devices.
        return sum(loss_of_shard(slice(first, first + 2)) for first in (0, 2))

    def ours(rows):
        part = {name: getattr(batch, name)[rows] for name in ("latents", "noise", "target_latent", "target_noise",
                                                              "weight", "is_prior")}  # fmt: skip
        return dreambooth_loss(prediction[rows], replace(batch, **part))[0]

    def theirs(rows):
        first, second = np.split(row[rows], 2)
        return (first.mean() + 0.3 * second.mean()) / 2  # averaged over the two devices

    assert sharded(ours) == pytest.approx(right, rel=1e-6)
    assert sharded(theirs) != pytest.approx(right, rel=1e-2)


def test_the_schedule_and_the_target_come_from_the_pipeline(make_batches):
    """The Flax script hard-coded SD1's betas and epsilon, so v-prediction models trained on the wrong target."""
    config = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "v_prediction"}
    batch = make_batches(config)(3, 1e-4)
    alpha_bar = np.cumprod(1 - np.linspace(0.001, 0.02, 1000))[batch.timestep]
    column = (slice(None), None, None, None)
    velocity = np.sqrt(alpha_bar)[column] * batch.noise - np.sqrt(1 - alpha_bar)[column] * batch.latents
    assert dreambooth_loss(velocity.astype(np.float32), batch)[0] < 1e-10
    hard_coded = make_batches(SD15)(3, 1e-4)
    assert dreambooth_loss(velocity.astype(np.float32), hard_coded)[0] > 0.1


def test_posterior_and_noise_are_drawn_apart(make_batches):
    """The Flax script used one key for both: with unit moments the latents' sample then equals the noise."""
    batch = make_batches()(0, 1e-4)
    sample = batch.latents - batch.latents.mean((1, 2, 3), keepdims=True)
    for row in range(4):
        assert abs(np.corrcoef(sample[row].ravel(), batch.noise[row].ravel())[0, 1]) < 0.3
    reused = batch.noise - batch.noise.mean((1, 2, 3), keepdims=True)
    assert np.corrcoef(reused[0].ravel(), batch.noise[0].ravel())[0, 1] > 0.99


def test_resuming_inside_an_epoch_goes_on_in_its_order(make_batches):
    """The PyTorch script shuffles the epoch anew on resume and skips ahead in another order."""
    batches = make_batches(std=0.0)  # latents then tell which image a row shows

    def shown(start, stop):
        return [batch.latents[:2, 0, 0, 0].tolist() for _, batch in made_ahead(lambda s: batches(s, 0.0), start, stop)]

    whole = shown(0, 10)
    assert shown(0, 3) + shown(3, 10) == whole
    epochs = np.array(whole).reshape(-1, 5)
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs.tolist()), "an epoch shows every photo once"
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1, "epochs differ in order"
    theirs = whole[:3] + [np.random.default_rng(1).permutation(5)[:2].tolist() for _ in range(7)]
    assert theirs != whole


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
        settings.set_field(config, "data.flip", settings.parse_text("data.flip", text))
        assert config.data.flip is False
    assert bool("False") is True, "the scripts' way"
    with pytest.raises(settings.UserError, match="must be true or false"):
        settings.set_field(config, "data.flip", settings.parse_text("data.flip", "0"))


def test_learned_variance_uses_the_first_half(make_batches):
    batch = make_batches()(0, 1e-4)
    doubled = np.concatenate([batch.noise, np.full_like(batch.noise, 9.0)], axis=-1)
    assert dreambooth_loss(doubled, batch)[0] < 1e-10
    assert dreambooth_loss(doubled[..., 4:], batch)[0] > 1
