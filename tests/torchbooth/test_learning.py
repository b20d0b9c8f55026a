"""DreamBooth on the embedded base, a short demo: the subject is learned, and the class is kept."""

from dataclasses import replace
from pathlib import Path

import pytest
from dreambooth_scores import sample_for, scores

from booth.config.loading import load_config
from booth.models.embedded import base_path
from torchbooth.backend import Backend
from torchbooth.train import train

pytestmark = pytest.mark.full  # hundreds of updates

DEMO = Path(__file__).parent.parent.parent / "configs" / "demo.py"
SUBJECT = "robot"


def faults(result):
    """What a run with these scores has missed: few steps and pictures, so bounds below what the demo reaches."""
    rules = {
        "the subject is not learned": result["learned"] >= 0.5,
        "it does not go where it is asked to": result["setting_right"] >= 0.7,
        "the class has lost its variety": result["diversity_kept"] >= 0.7,
        "the class has become the subject": result["class_drift"] <= 0.4,
        "the prior is lost": result["prior_kept"] >= 0.5,
    }
    return [fault for fault, holds in rules.items() if not holds]


def tuned(folder, prior=1.0):
    """A model tuned in a short demo, as a pipeline folder."""
    config = load_config(DEMO)
    config.prior.weight = prior
    config.samples.before_after = False
    config.samples.every_steps = 0
    config.prior.count = 32
    config.train.steps = 300
    config.checkpoint.every_steps = 0
    return train(config, folder).pipeline


def sampled(source):
    return sample_for(Backend, source, SUBJECT, asked=16, per_setting=2, of_class=16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(base's pictures, tuned model's)."""
    return sampled(base_path()), sampled(tuned(tmp_path_factory.mktemp("run")))


def test_the_subject_is_learned_and_the_class_is_kept(pictures):
    result = scores(*pictures, SUBJECT)
    assert faults(result) == [], result


def test_a_model_that_learned_nothing_is_caught(pictures):
    base, _ = pictures
    assert faults(scores(base, base, SUBJECT)) == ["the subject is not learned"]


def test_a_lost_prior_is_caught(pictures):
    """The subject's pictures in place of the class's."""
    base, learned = pictures
    lost = replace(learned, class_prompt=learned.instance_prompt)
    assert set(faults(scores(base, lost, SUBJECT))) >= {"the class has become the subject", "the prior is lost"}


def test_without_prior_preservation_the_class_drifts(pictures, tmp_path):
    """The comparison of the DreamBooth paper (arXiv 2208.12242, section 4.3)."""
    base, learned = pictures
    alone = scores(base, sampled(tuned(tmp_path / "run", prior=0.0)), SUBJECT)
    assert alone["class_drift"] > scores(base, learned, SUBJECT)["class_drift"] + 0.2
    assert "the prior is lost" in faults(alone)
