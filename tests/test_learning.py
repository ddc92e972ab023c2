"""The training loop on a toy: what is not finite, stops, resuming, the logs."""

import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.proto.event_pb2 import Event

from reangle_jax import learning
from reangle_jax.errors import NotFiniteError
from reangle_jax.stopping import Stop, Stopped

pytestmark = pytest.mark.usefixtures("optax_promotion")
STEPS = 25
OPTIMISER = optax.adamw(0.1)


def loss(parameters, frozen, x):
    return jnp.mean((parameters["w"] * frozen - x) ** 2)


@pytest.fixture(scope="module")
def step():
    return learning.make_step(loss, OPTIMISER)


class Work:
    """Training in a folder; keeps which steps were taken, and what training gave."""

    def __init__(self, step, folder, optimiser=OPTIMISER):
        self.step, self.folder, self.optimiser = step, folder, optimiser
        self.taken, self.given = [], None

    def __call__(self, *, bad=(), stop_at=None, every=0, steps=STEPS):
        stop, self.taken, self.given = Stop(), [], None
        rate = lambda number: 0.1 / (number + 1)  # noqa: E731

        def arguments(number):
            self.taken.append(number + 1)
            if number + 1 == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            value = np.float32(np.nan if number + 1 in bad else number % 3)
            return jax.device_put((np.float32(2.0), value))

        with stop.installed(), stop.at_safe_points():
            self.given = learning.train(
                self.step,
                learning.init({"w": jnp.zeros(3)}, self.optimiser),
                arguments,
                name="toy",
                steps=steps,
                over=lambda done, history: done >= steps,
                checkpoints=self.folder / "steps",
                due=lambda done: bool(every) and done % every == 0 and done < steps,
                log=functools.partial(learning.events, self.folder / "logs", "toy", rate),
                stop=stop,
                rate=rate,
                mend=lambda number: f"mend {number}",
            )
        return self.given

    def events(self):
        """(tag, step, value) of every scalar in every event file, read as TensorBoard does."""
        found = []
        for path in sorted((self.folder / "logs").iterdir()):
            data, at = path.read_bytes(), 0
            while at < len(data):
                length = int.from_bytes(data[at : at + 8], "little")
                event = Event.FromString(data[at + 12 : at + 12 + length])
                found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
                at += 12 + length + 4
        return found


@pytest.fixture
def work(step, tmp_path):
    return Work(step, tmp_path)


@pytest.fixture(scope="module")
def unbroken(step, tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"):
        return Work(step, tmp_path_factory.mktemp("unbroken"))()


def same(found, expected):
    np.testing.assert_array_equal(found[0].parameters["w"], expected[0].parameters["w"])
    assert found[1] == expected[1]


@pytest.mark.parametrize("every", [0, 5])
def test_a_loss_that_is_not_finite_is_seen_soon_and_the_last_good_state_kept(work, unbroken, every):
    for _ in range(2):  # again, nothing changed: the same line, and nothing before the bad step is done again
        with pytest.raises(NotFiniteError, match=r"^toy: the loss of step 13 is nan: mend 12$"):
            work(bad=(13, 14), every=every)
        assert max(work.taken) <= 12 + learning.LOG_EVERY
    assert work.taken[0] == 13
    # What was kept is the state after step 12: from there on, as if nothing had been.
    same(work(), unbroken)
    assert work.taken == list(range(13, STEPS + 1))


def test_a_bad_first_step_keeps_nothing(work):
    with pytest.raises(NotFiniteError, match="the loss of step 1 is nan"):
        work(bad=(1,))
    assert work.taken[-1] <= learning.LOG_EVERY
    work(steps=3)
    assert work.taken == [1, 2, 3]


def test_a_gradient_that_is_not_finite_is_found_too(tmp_path):
    def rooted(parameters, frozen, x):
        return jnp.sum(jnp.sqrt(jnp.abs(parameters["w"]))) * frozen + x  # finite at 0, its slope there is not

    with pytest.raises(NotFiniteError, match="toy: the gradient norm of step 1 is"):
        Work(learning.make_step(rooted, OPTIMISER), tmp_path)(steps=2)


@pytest.mark.parametrize("every", [0, 5])
@pytest.mark.parametrize("at", [1, 7, 10, STEPS - 1])
def test_a_stop_loses_no_step(work, unbroken, every, at):
    with pytest.raises(Stopped):
        work(stop_at=at, every=every)
    assert work.taken[-1] == at
    same(work(every=every), unbroken)
    assert work.taken[0] == at + 1


def test_a_stop_in_the_last_step_waits_for_the_callers_work(work, unbroken):
    with pytest.raises(Stopped):
        work(stop_at=STEPS)
    same(work.given, unbroken)  # the rest of the block that held the signal had what was learnt


def test_every_event_is_on_the_disk_once(work, unbroken):
    with pytest.raises(Stopped):
        work(stop_at=7)
    tags = {"toy/loss", "toy/gradient_norm", "toy/update_norm", "toy/learning_rate"}
    assert {(tag, number) for tag, number, _ in work.events()} == {(tag, k) for tag in tags for k in range(7)}
    with pytest.raises(NotFiniteError):
        work(bad=(13,))
    assert len(work.events()) == len(tags) * 12
    work()
    events = work.events()
    assert sorted((tag, number) for tag, number, _ in events) == sorted((t, k) for t in tags for k in range(STEPS))
    values = {(tag, number): value for tag, number, value in events}
    for number in range(STEPS):
        assert values["toy/loss", number] == pytest.approx(unbroken[1]["loss"][number])
        assert values["toy/learning_rate", number] == pytest.approx(0.1 / (number + 1))


def test_events_of_steps_that_are_taken_again_are_not_there_twice(work, monkeypatch):
    """Killed outright, two steps after the last saved state."""
    real = learning._save

    def save_at_ten_only(manager, state, history):
        if len(history["loss"]) == 10:
            real(manager, state, history)

    monkeypatch.setattr(learning, "_save", save_at_ten_only)
    with pytest.raises(Stopped):
        work(stop_at=17, every=5)
    assert len({number for _, number, _ in work.events()}) == 17
    monkeypatch.undo()
    with pytest.raises(Stopped):
        work(stop_at=12)
    assert work.taken == [11, 12]
    assert sorted(number for tag, number, _ in work.events() if tag == "toy/loss") == list(range(12))


def test_norms_are_those_of_gradient_and_update(step):
    state = learning.init({"w": jnp.zeros(3)}, optax.sgd(0.5))
    sgd = learning.make_step(loss, optax.sgd(0.5))
    state, numbers = sgd(state, jnp.float32(2.0), jnp.float32(3.0))
    # d/dw mean((2 w - 3)^2) at 0 is -12 / 3 for each of three.
    assert float(numbers["gradient_norm"]) == pytest.approx(4 * 3**0.5)
    assert float(numbers["update_norm"]) == pytest.approx(2 * 3**0.5)
    np.testing.assert_allclose(state.parameters["w"], 2.0)


def test_a_step_takes_nothing_from_the_host(work):
    step = work.step
    work.step = lambda state, frozen, x: step(state, np.float32(2.0), x)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        work(steps=1)
