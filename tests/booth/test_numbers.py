"""`auto`: the known rules, applied and printed."""

import json

import pytest
import yaml
from fake_backend import FakeBackend

from booth.common.errors import UserError
from booth.config.auto import with_numbers
from booth.config.loading import load_config
from booth.config.values import default_config
from booth.report import write
from booth.train import loop
from booth.train.run_record import read_record


@pytest.mark.parametrize(
    ("photos", "batch_size", "adapter", "steps", "rate"),
    [(5, 1, "none", 750, 5e-6), (5, 4, "none", 188, 5e-6), (12, 1, "lora", 1800, 1e-4), (1, 4, "lora", 100, 1e-4)],
)
def test_the_rules(photos, batch_size, adapter, steps, rate, caplog):
    config = default_config()
    config.train.steps = config.train.learning_rate = config.prior.count = "auto"
    config.train.batch_size, config.adapter.kind = batch_size, adapter
    with caplog.at_level("INFO", "booth"):
        chosen = with_numbers(config, photos)
    assert (chosen.train.steps, chosen.train.learning_rate, chosen.prior.count) == (steps, rate, 200)
    assert caplog.messages[0].startswith(f"train.steps={steps}: 150 for each of {photos} photos")
    assert len(caplog.messages) == 3 and config.train.steps == "auto"
    assert (chosen.train.text_encoder_learning_rate, chosen.adapter.alpha) == ("auto", "auto")


def test_what_is_given_stays(caplog):
    with caplog.at_level("INFO", "booth"):
        assert with_numbers(default_config(), 5) == default_config()
    assert not caplog.messages


def test_auto_in_files_and_on_the_command_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"train": {"steps": "auto", "learning_rate": "auto"}}), encoding="utf-8")
    config = load_config(path, [("prior.count", "auto")])
    assert (config.train.steps, config.train.learning_rate, config.prior.count) == ("auto",) * 3
    with pytest.raises(UserError, match=r"train\.batch_size='auto' must be of type int"):
        load_config(path, [("train.batch_size", "auto")])


def test_a_run_records_the_number_and_resumes(tiny_config, tmp_path):
    tiny_config.train.steps, tiny_config.train.batch_size = "auto", 5
    first = loop.train(FakeBackend, tiny_config, tmp_path / "run")
    assert len(first.metrics) == 150
    assert '"train.steps": 150' in (tmp_path / "run" / "config.json").read_text(encoding="utf-8")
    assert loop.train(FakeBackend, tiny_config, tmp_path / "run").metrics == first.metrics
    tiny_config.train.lr_warmup_steps = 200
    with pytest.raises(UserError, match=r"lr_warmup_steps=200 must be less than train\.steps=150"):
        loop.train(FakeBackend, tiny_config, tmp_path / "other")


def test_a_run_of_before_goes_on(tiny_config, tmp_path, caplog):
    """Its record has 0 for what is "auto" now, and a value where none counts; the config does not name them."""
    tiny_config.checkpoint.every_steps = 2
    first = loop.train(FakeBackend, tiny_config, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["config"] |= {"train.text_encoder_learning_rate": 0.0, "adapter.alpha": 0.0, "adapter.rank": 4}
    path.write_text(json.dumps(record), encoding="utf-8")
    assert write.write(tmp_path / "run").is_file()
    assert read_record(tmp_path / "run").config["adapter.alpha"] == "auto"
    again = load_config(path)
    again.train.steps = 6
    with caplog.at_level("WARNING", "booth"):
        second = loop.train(FakeBackend, again, tmp_path / "run")
    assert second.metrics[:4] == first.metrics and len(second.metrics) == 6
    assert [message for message in caplog.messages if "resuming with" in message] == [
        "resuming with train.steps=6 (was 4)"
    ]
