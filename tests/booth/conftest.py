"""Fixtures that several tests of the core need."""

import pytest


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a picture under a name in `tmp_path` and returns its path."""

    def save(name, image, **options):
        path = tmp_path / name
        image.save(path, **options)
        return path

    return save


@pytest.fixture(scope="module")
def finished(make_tiny_config, tmp_path_factory):
    """Return the folder of a finished run with previews and before_after.png; tests must not write into it."""
    from fake_backend import FakeBackend

    from booth.report import write
    from booth.train import loop

    config = make_tiny_config()
    config.samples.inference_steps, config.samples.every_steps, config.samples.before_after = 2, 2, True
    return loop.train(FakeBackend, config, tmp_path_factory.mktemp("finished") / "run", refresh=write.refresh).path
