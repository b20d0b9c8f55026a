"""Several processes that run the same program: here threads with a network between them, with the NumPy backend."""

import logging
import threading

import numpy as np
import pytest
from fake_backend import FakeBackend

from booth.common.errors import OutOfMemory, UserError
from booth.common.hosts import ALONE, ended_together, from_first, on_all, packed, stop_asked, unpacked
from booth.common.signals import Interrupted, Stopped, exit_code
from booth.train import loop

WAIT_S = 30


class Network:
    """What `count` processes share. A collective operation is a pair of meetings: all give, then all take."""

    def __init__(self, count):
        self.count, self.given, self.left = count, [None] * count, []
        self.meeting = threading.Barrier(count)

    def all_give(self, index, value):
        self.given[index] = value
        try:
            self.meeting.wait(WAIT_S)
            given = list(self.given)
            self.meeting.wait(WAIT_S)
        except threading.BrokenBarrierError:
            raise RuntimeError("[pair.cc:1] Connection closed by peer") from None
        return given


class Thread:
    """One of the processes: an implementation of `Hosts`."""

    def __init__(self, network, index):
        self.network, self.index, self.count = network, index, network.count

    def broadcast(self, content):
        return self.network.all_give(self.index, content)[0]

    def largest(self, number):
        answer = max(self.network.all_give(self.index, number))
        return lambda: answer

    def leave(self, code):
        self.network.left.append((self.index, code))
        self.network.meeting.abort()  # as a framework ends those who wait for a process that is gone


def together(count, act):
    """Return what `act(hosts)` returned or raised on each of `count` processes."""
    network, outcomes = Network(count), [None] * count

    def process(index):
        try:
            outcomes[index] = act(Thread(network, index))
        except BaseException as error:
            outcomes[index] = error

    threads = [threading.Thread(target=process, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=2 * WAIT_S)
        assert not thread.is_alive()
    return outcomes, network


def test_plain_data_comes_back_the_same():
    data = {"a": [1, 2.5, None, "ü\n"], "b": {"c": np.arange(6, dtype=np.float32).reshape(2, 3)}, "d": []}
    back = unpacked(packed(data))
    np.testing.assert_array_equal(back["b"].pop("c"), data["b"].pop("c"))
    assert back == data
    for thing in (object(), np.array([object()])):
        with pytest.raises(TypeError, match="is not plain data"):
            packed({"thing": thing})


def test_what_the_first_knows_all_are_told():
    outcomes, _ = together(3, lambda hosts: from_first(hosts, lambda: {"who": hosts.index, "x": np.ones(2)}))
    assert [outcome["who"] for outcome in outcomes] == [0, 0, 0]
    assert all((outcome["x"] == 1).all() for outcome in outcomes)


@pytest.mark.parametrize("error", [UserError("no photos"), OSError("no photos"), OutOfMemory("no photos")])
def test_a_refusal_of_the_first_is_raised_by_all(error):
    def act(hosts):
        def make():
            raise error

        with ended_together(hosts):
            return from_first(hosts, make)

    outcomes, network = together(3, act)
    assert [str(outcome) for outcome in outcomes] == ["no photos"] + ["host 0 has stopped: no photos"] * 2
    assert [exit_code(outcome) for outcome in outcomes] == [2, 2, 2]
    assert network.left == [], "all end by themselves"


def test_a_failure_of_any_is_raised_by_all():
    def act(hosts):
        def make():
            if hosts.index == 1:
                raise UserError("no space left")
            return hosts.index

        with ended_together(hosts):
            return on_all(hosts, make)

    outcomes, network = together(3, act)
    other = "host 1 of 3 has failed and says why in its own output"
    assert [str(outcome) for outcome in outcomes] == [other, "no space left", other]
    assert network.left == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(ZeroDivisionError(), 1), (UserError("no"), 2), (KeyboardInterrupt(), 130), (Interrupted(15), 143)],
)
def test_one_that_fails_by_itself_leaves(error, code):
    def act(hosts):
        with ended_together(hosts):
            if hosts.index == 1:
                raise error
            return from_first(hosts, lambda: "never told")

    outcomes, network = together(2, act)
    assert network.left == [(1, code), (0, 2)] and outcomes[1] is error
    assert str(outcomes[0]) == "another process of this run has ended, and says why in its own output"


def test_a_stop_is_asked_of_all_after_the_same_update():
    class Request:
        number = 0

    def act(hosts):
        request = Request()
        asked = stop_asked(hosts, request)
        for update in range(9):
            if (hosts.index, update) == (2, 4):
                request.number = 15
            if number := asked():
                return update, number
        return None

    outcomes, _ = together(3, act)
    assert outcomes == [(5, 15)] * 3, "one update later, when the answer is there"
    request = Request()
    alone = stop_asked(ALONE, request)
    assert alone() == 0
    request.number = 2
    assert alone() == 2, "one process stops at once"


def test_one_process_packs_and_sends_nothing():
    thing = object()  # nothing that could be sent
    assert from_first(ALONE, lambda: thing) is thing and on_all(ALONE, lambda: thing) is thing


# Whole runs


def backend_class(hosts, log=None, fails_on=None):
    """Return the Backend of one process; `log` gets (index, batch)."""

    class Backend(FakeBackend):
        @staticmethod
        def hosts():
            return hosts

        def own_rows(self, rows):
            return {row for row in range(rows) if row % hosts.count == hosts.index}

        def train_step(self, state, batch):
            if log is not None:
                log.append((hosts.index, batch))
            return super().train_step(state, batch)

        def load(self, pipeline):
            if fails_on == hosts.index:
                raise UserError("no space left")
            return super().load(pipeline)

        def save(self, state, folder):
            if hosts.index == 0:
                super().save(state, folder)

    return Backend


def test_all_train_the_same_and_each_makes_its_own_rows(tiny_config, tmp_path):
    log = []
    tiny_config.samples.every_steps = 2
    tiny_config.samples.before_after = True
    tiny_config.checkpoint.every_steps = 2

    def act(hosts):
        config = tiny_config.copy_and_resolve_references()
        if hosts.index:
            config.instance.images = "/nowhere"  # only process 0 has the photos
        return loop.train(backend_class(hosts, log), config, tmp_path / "run")

    (run, *others), network = together(3, act)
    assert run.pipeline.is_dir() and len(run.metrics) == tiny_config.train.steps, run
    assert [other.metrics for other in others] == [[], []] and network.left == []
    for step in range(tiny_config.train.steps):
        batches = [[batch for host, batch in log if host == index][step] for index in range(3)]
        for index, batch in enumerate(batches):
            made = {row for row in range(4) if batch.latents[row].any()}
            assert made == {row for row in range(4) if row % 3 == index}, "latents of own rows only"
            assert np.array_equal(batch.weight, batches[0].weight), "the rest is the same on all"
    whole = sum([batch.noise for host, batch in log if host == index][-1] for index in range(3))
    alone = []
    loop.train(backend_class(Thread(Network(1), 0), alone), tiny_config, tmp_path / "alone")
    assert np.array_equal(whole, alone[-1][1].noise), "together they have the whole batch"


def test_they_resume_together(tiny_config, tmp_path):
    def train(hosts, steps):
        config = tiny_config.copy_and_resolve_references()
        config.train.steps = steps
        return loop.train(backend_class(hosts), config, tmp_path / "run")

    (first, *_), _ = together(2, lambda hosts: train(hosts, 2))
    (second, *_), network = together(2, lambda hosts: train(hosts, 4))
    assert second.metrics[:2] == first.metrics and len(second.metrics) == 4 and network.left == []
    (third, other), _ = together(2, lambda hosts: train(hosts, 4))
    assert third.metrics == second.metrics and other.metrics == [], "nothing is left to do, on any"


def test_a_process_that_cannot_load_ends_all_and_is_named(tiny_config, tmp_path):
    outcomes, network = together(
        3, lambda hosts: loop.train(backend_class(hosts, fails_on=2), tiny_config, tmp_path / "run")
    )
    other = "host 2 of 3 has failed and says why in its own output"
    assert [str(outcome) for outcome in outcomes] == [other, other, "no space left"] and network.left == []


def test_a_host_that_does_not_see_the_checkpoints_is_named(tiny_config, tmp_path, monkeypatch):
    from booth.train.checkpoints import Checkpoints

    require = Checkpoints._require
    monkeypatch.setattr(
        Checkpoints,
        "_require",
        lambda self, name: require(self, name if self._hosts.index == 0 else f"{name}-not-here"),
    )
    outcomes, _ = together(2, lambda hosts: loop.train(backend_class(hosts), tiny_config, tmp_path / "run"))
    assert str(outcomes[0]).startswith("host 1 of 2 has failed")
    assert str(outcomes[1]).startswith("this process does not see the checkpoint folder")
    assert "checkpoint.dir" in str(outcomes[1])
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "the probe is taken away"


def test_other_weights_on_a_host_are_refused(tiny_config, tmp_path, monkeypatch):
    from booth.models.pipeline import PipelineDir

    hashes = PipelineDir.hashes
    monkeypatch.setattr(
        PipelineDir, "hashes", lambda self: {**hashes(self), "weights of unet": str(threading.get_ident())}
    )
    outcomes, _ = together(2, lambda hosts: loop.train(backend_class(hosts), tiny_config, tmp_path / "run"))
    assert str(outcomes[0]).startswith("host 1 of 2 has failed")
    assert "is a different model on this host (weights of unet)" in str(outcomes[1])


def test_all_give_up_together_when_training_diverges(tiny_config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("booth.train.metrics.MOST_SKIPPED_IN_A_ROW", 2)
    logging.getLogger("booth").propagate = True

    def act(hosts):
        class Broken(backend_class(hosts)):
            def train_step(self, state, batch):
                state, metrics = super().train_step(state, batch)
                return state, {**metrics, "loss": np.float32("nan"), "skipped": np.float32(1)}

        return loop.train(Broken, tiny_config, tmp_path / "run")

    outcomes, _ = together(2, act)
    assert all("2 updates in a row had no finite loss" in str(outcome) for outcome in outcomes), outcomes


def test_a_stop_in_a_run_saves_and_ends_all(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "stop_asked", lambda hosts, request: iter([0, 0, 15, 15]).__next__)
    outcomes, network = together(2, lambda hosts: loop.train(backend_class(hosts), tiny_config, tmp_path / "run"))
    assert all(isinstance(outcome, Stopped) and (outcome.step, outcome.code) == (3, 143) for outcome in outcomes)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]
    assert network.left == []
