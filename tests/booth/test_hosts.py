"""One host leads, the others follow: over queues instead of a network, with the NumPy backend."""

import pickle
import queue
import threading

import numpy as np
import pytest
from fake_backend import FakeBackend

from booth.common.errors import UserError
from booth.train import loop


class Network:
    """What `count` hosts share; messages are pickled, as they are on a real one."""

    def __init__(self, count):
        self.count = count
        self.inboxes = [queue.Queue() for _ in range(count)]
        self.sent, self.failures, self.requests = [], [], {}


class QueueHosts:
    def __init__(self, network, index):
        self.network, self.index, self.count = network, index, network.count

    def send(self, message):
        self.network.sent.append(message[0])
        for inbox in self.network.inboxes[1:]:
            inbox.put(pickle.dumps(message))

    def receive(self):
        return pickle.loads(self.network.inboxes[self.index].get(timeout=30))

    def confirm(self, failure):
        self.network.inboxes[0].put((self.index, failure))

    def fail(self, reason, code):
        self.network.failures.append((self.index, reason, code))

    def pass_on(self, request):
        self.network.requests[self.index] = request

    def end(self):
        if self.index == 0:
            self.confirmed()

    def confirmed(self):
        return [failure for _, failure in sorted(self.network.inboxes[0].get(timeout=5) for _ in range(1, self.count))]


def backends(network, log, fails_on=None):
    """One Backend class for each host; `log` gets (host, call) and the batches that each was given."""

    def backend_class(index):
        class Backend(FakeBackend):
            @staticmethod
            def hosts():
                return QueueHosts(network, index)

            def own_rows(self, rows):
                return {row for row in range(rows) if row % network.count == index}

            def train_step(self, state, batch):
                log.append((index, batch))
                return super().train_step(state, batch)

            def load(self, pipeline):
                if fails_on == index:
                    raise UserError("no space left")
                return super().load(pipeline)

            def save(self, state, folder):
                if index == 0:
                    super().save(state, folder)

        return Backend

    return [backend_class(index) for index in range(network.count)]


def run_all(classes, config, workdir):
    """(what host 0 gave or raised, what each other raised or None)."""
    outcomes = [None] * len(classes)

    def follower(index):
        try:
            loop.train(classes[index], None, workdir)
        except UserError as error:
            outcomes[index] = str(error)

    threads = [threading.Thread(target=follower, args=(index,)) for index in range(1, len(classes))]
    for thread in threads:
        thread.start()
    try:
        outcomes[0] = loop.train(classes[0], config, workdir)
    except UserError as error:
        outcomes[0] = str(error)
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return outcomes


def test_all_make_the_same_calls_and_each_its_own_rows(tiny_config, tmp_path):
    network, log = Network(3), []
    tiny_config.samples.every_steps = 2  # the models of a state, not those that were loaded
    run, *others = run_all(backends(network, log), tiny_config, tmp_path / "run")
    assert run.pipeline.is_dir() and others == [None, None]
    assert network.sent[:2] == ["start", "load"] and network.sent[-1] == "end"
    assert network.sent.count("train_step") == tiny_config.train.steps
    for step in range(tiny_config.train.steps):
        batches = [[batch for host, batch in log if host == index][step] for index in range(3)]
        for index, batch in enumerate(batches):
            made = {row for row in range(4) if batch.latents[row].any()}
            assert made == {row for row in range(4) if row % 3 == index}, "latents of own rows only"
            assert np.array_equal(batch.weight, batches[0].weight), "the rest is the same on all"
    whole = sum([batch.noise for host, batch in log if host == index][-1] for index in range(3))
    alone = []
    loop.train(recorded(alone), tiny_config, tmp_path / "alone")
    assert np.array_equal(whole, alone[-1].noise), "together they have the whole batch"


def recorded(batches):
    class Backend(FakeBackend):
        def train_step(self, state, batch):
            batches.append(batch)
            return super().train_step(state, batch)

    return Backend


def test_a_host_that_fails_ends_all_and_is_named(tiny_config, tmp_path):
    network = Network(3)
    leader, *others = run_all(backends(network, [], fails_on=2), tiny_config, tmp_path / "run")
    assert leader == "host 2 of 3: no space left"
    assert others == ["host 0 has stopped: host 2 of 3: no space left"] * 2
    assert network.failures[0] == (2, "no space left", 2), "for who would wait in a collective"


def test_a_failing_update_is_told_though_nobody_asks(tiny_config, tmp_path):
    network = Network(2)
    classes = backends(network, [])
    classes[1].train_step = lambda *_: 1 / 0
    outcomes = [None, None]

    def follower():
        try:
            loop.train(classes[1], None, tmp_path / "run")
        except ZeroDivisionError:
            outcomes[1] = "raised"

    thread = threading.Thread(target=follower)
    thread.start()
    # Host 0 of a real run waits in the collective here; this one ends it instead.
    classes[0].train_step = lambda *_: (_ for _ in ()).throw(UserError("ended"))
    with pytest.raises(UserError, match="ended"):
        loop.train(classes[0], tiny_config, tmp_path / "run")
    thread.join(timeout=30)
    assert outcomes[1] == "raised" and (1, "division by zero", 1) in network.failures


def test_a_host_that_does_not_see_the_checkpoints_is_named(tiny_config, tmp_path, monkeypatch):
    network = Network(2)
    classes = backends(network, [])
    hosts = classes[1].hosts()
    receive = hosts.receive

    def elsewhere():
        call, *arguments = receive()
        return (call, arguments[0], tmp_path / "not" / "there") if call == "start" else (call, *arguments)

    hosts.receive = elsewhere
    monkeypatch.setattr(classes[1], "hosts", lambda: hosts)
    leader, follower = run_all(classes, tiny_config, tmp_path / "run")
    assert leader.startswith("host 1 of 2: does not see the checkpoint folder") and "checkpoint.dir" in leader
    assert follower.startswith("host 0 has stopped: ")
    assert not list((tmp_path / "run" / "checkpoints").iterdir()), "the probe is taken away"


def test_other_weights_on_a_host_are_refused(tiny_config, tmp_path, monkeypatch):
    network = Network(2)
    classes = backends(network, [])
    sent = []
    hosts = classes[0].hosts()
    send = hosts.send

    def other(message):
        sent.append(message[0])
        send((message[0], message[1], {**message[2], "weights of unet": "0" * 64}) if message[0] == "load" else message)

    hosts.send = other
    monkeypatch.setattr(classes[0], "hosts", lambda: hosts)
    leader, _ = run_all(classes, tiny_config, tmp_path / "run")
    assert leader.startswith("host 1 of 2: model.source=") and leader.endswith(
        "is a different model here (weights of unet)"
    )
