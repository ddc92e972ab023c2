"""Stochastic control with models and rewards of which the best path is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax.diffusion import flow
from reangle_jax.diffusion.control import Control, plan
from reangle_jax.diffusion.flow import Coefficients
from tests import quick_compilation

TIMES = flow.times(8, 1350)
NOISE = jax.random.normal(jax.random.key(7), (3, 2))
KEY = jax.random.key(1)
evaluated = []


def predict(states, time, gain):
    """Its clean estimate is nonlinear in the state and depends on the time: candidates are told apart by it alone."""
    jax.debug.callback(lambda batch, t: evaluated.append((batch.shape[0], round(float(t), 6))), states, time)
    clean = jnp.tanh(gain * states) * (1 - 0.5 * time)
    return (states - clean) / jnp.maximum(time, 1e-3)


def decode(clean, gain):
    return 0.5 + 0.5 * clean


def scores(target, pictures):
    """Two columns, whose sum decides."""
    near = -jnp.abs(pictures - target[None]).sum(axis=2)
    return jnp.stack([near[:, 0], near[:, 1] + near[:, 2]], axis=1)


TARGET = jnp.array([[0.9, 0.2], [0.4, 0.6], [0.1, 0.8]])


@pytest.fixture(scope="module")
def control():
    return Control(predict, decode)


def run(control, chosen, steps=None, **options):
    """The end, and of each step its record."""
    seen = []

    def on_step(saved, index, table, kept):
        seen.append((saved, index, table, kept))
        if steps is not None and len(seen) == steps:
            raise KeyboardInterrupt

    arguments = {"key": KEY, "scores": scores, "judging": TARGET, **options}
    try:
        end = control.sample(NOISE, chosen, jnp.float32(1.5), **arguments, on_step=on_step)
    except KeyboardInterrupt:
        end = None
    return end, seen


def written_out(chosen):
    """The algorithm in NumPy, float64, with the same draws."""

    def velocity(x, t):
        return (x - np.tanh(1.5 * x) * (1 - 0.5 * t)) / max(t, 1e-3)

    x = np.asarray(NOISE, np.float64)
    kept, levels = [], chosen.coefficients.noise
    for index in range(len(TIMES) - 1):
        t, after, s = TIMES[index], TIMES[index + 1], levels[index]
        clean, noise = x - t * velocity(x, t), x + (1 - t) * velocity(x, t)
        count = chosen.candidates[index]
        if count == 1:
            x = (1 - after) * clean + after * noise
            continue
        totals, following = [], []
        for k in range(count):
            draw = jax.random.normal(jax.random.fold_in(jax.random.fold_in(KEY, index), k), x.shape)
            state = (1 - after) * clean + np.sqrt(after**2 - s**2) * noise + s * np.asarray(draw, np.float64)
            picture = 0.5 + 0.5 * (state - after * velocity(state, after))
            totals.append(-np.abs(picture - np.asarray(TARGET)).sum())
            following.append(state)
        kept.append((index, int(np.argmax(totals)), max(totals)))
        x = following[kept[-1][1]]
    return x, kept


def test_the_best_of_all_candidates_is_kept_at_each_step(control):
    chosen = plan(TIMES, candidates=6)
    end, seen = run(control, chosen)
    expected, kept = written_out(chosen)
    assert [(i, k) for _, i, table, k in seen if table is not None] == [(i, k) for i, k, _ in kept]
    assert [i for i, *_ in kept] == [0, 1, 2, 3, 4, 5]  # no noise, and no choice, in the last two
    for (_, _, table, k), (_, _, best) in zip(seen, kept, strict=False):
        assert table.shape == (6, 2)
        assert table.sum(axis=1).argmax() == k
        assert table[k].sum() == pytest.approx(best, abs=1e-5)
    np.testing.assert_allclose(end, expected, atol=2e-5)
    alone, _ = run(control, plan(TIMES, candidates=1))
    gain = [float(scores(TARGET, decode(x[None], None)).sum()) for x in (end, alone)]
    assert gain[0] > gain[1] + 0.3


def test_evaluations_are_made_once(control):
    chosen = plan(TIMES, candidates=4, window=(0.25, 0.75), every=2)
    evaluated.clear()
    run(control, chosen)
    jax.effects_barrier()
    # One of the noise; then of each next state at its own time, the winner's being the next step's too; the clean end
    # needs none.
    counts = [sum(n for n, t in evaluated if t == round(float(np.float32(time)), 6)) for time in TIMES]
    assert counts == [1, 1, 1, 4, 1, 4, 1, 1, 0]
    assert chosen.evaluations == sum(counts)


def test_one_candidate_is_plain_sampling_to_the_byte(control):
    plain, none = run(control, plan(TIMES, candidates=1)), run(control, plan(TIMES, candidates=5), scores=None)
    x = NOISE
    step = jax.jit(lambda x, v, c: flow.advance(x, v, c))
    model = jax.jit(lambda x, t: predict(x[None], t, jnp.float32(1.5))[0])
    table = Coefficients.of(TIMES, np.zeros(8))
    for index in range(8):
        c = table.step(index)
        x = step(x, model(x, c.time), c)
    for end, seen in (plain, none):
        np.testing.assert_array_equal(end, x)
        assert [table for _, _, table, _ in seen] == [None] * 8


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_size_of_rounds_changes_nothing(size, monkeypatch):
    """To the byte, where loops are emitted as users' are: another emitter may round other shapes otherwise."""
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=quick_compilation.USERS_LOOPS))
    control = Control(predict, decode)
    chosen = plan(TIMES, candidates=7, fewest=2)
    (end, seen), (other, others) = run(control, chosen), run(Control(predict, decode, round_size=size), chosen)
    np.testing.assert_array_equal(end, other)
    for (_, _, a, i), (_, _, b, j) in zip(seen, others, strict=True):
        assert i == j
        if a is not None:
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_of_equals_the_first_is_kept_and_what_is_no_number_never():
    def ties(which, pictures):
        return jnp.where(jnp.arange(len(pictures))[:, None] < 0, pictures[:, 0, :1], which[None])

    for size in (1, 2, 5):
        control = Control(predict, decode, round_size=size)
        _, seen = run(control, plan(TIMES, candidates=5), scores=ties, judging=jnp.array([0.5]))
        assert {kept for _, _, table, kept in seen if table is not None} == {0}
    lost = lambda which, pictures: jnp.where(pictures[:, 0, :1] > 0.5, jnp.nan, pictures[:, 0, :1])  # noqa: E731
    _, seen = run(Control(predict, decode, round_size=5), plan(TIMES, candidates=5), scores=lost)
    tables = [(table, kept) for _, _, table, kept in seen if table is not None]
    assert any(np.isnan(table).any() for table, _ in tables)
    assert all(np.isfinite(table[kept]).all() for table, kept in tables if not np.isnan(table).all())


def test_one_program_for_all_steps_counts_and_pictures(control):
    run(control, plan(TIMES, candidates=6))
    programs = [f._cache_size() for f in (control._round, control._move, control._evaluate)]
    run(control, plan(flow.times(5, 256), candidates=3, eta=0.4, noise="constant", fewest=2), judging=TARGET + 0.1)
    assert [f._cache_size() for f in (control._round, control._move, control._evaluate)] == programs


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_run_that_was_stopped_goes_on_to_the_same_end(control, stop):
    chosen = plan(TIMES, candidates=3)
    end, seen = run(control, chosen)
    _, before = run(control, chosen, steps=stop)
    again, after = run(control, chosen, saved=before[-1][0])
    np.testing.assert_array_equal(again, end)
    assert [entry[3] for entry in before + after] == [entry[3] for entry in seen]


def test_what_settles_is_settled_before_it_is_evaluated():
    pinned = Control(predict, decode, lambda states, time, gain: states.at[:, 0].set(time), round_size=3)
    end, seen = run(pinned, plan(TIMES, candidates=3))
    for saved, index, _, _ in seen:
        np.testing.assert_allclose(saved["state"][0], TIMES[index + 1], rtol=1e-6)
    assert (np.asarray(end)[0] == 0).all()


def test_which_steps_choose():
    def counts(**options):
        return plan(flow.times(12, 1350), **{"candidates": 9, **options}).candidates.tolist()

    assert counts() == [9] * 10 + [1, 1]
    assert counts(window=(0.25, 1.0)) == [1] * 3 + [9] * 7 + [1, 1]
    assert counts(window=(0.25, 0.5), every=2) == [1, 1, 1, 9, 1, 9] + [1] * 6
    assert counts(window=(0.25, 0.75), fewest=4) == [1, 1, 1, 9, 8, 7, 6, 5, 4, 1, 1, 1]
    assert counts(candidates=1) == counts(eta=0.0) == counts(window=(0.5, 0.5)) == [1] * 12
    quiet = plan(flow.times(12, 1350), candidates=9, window=(0.25, 0.5)).coefficients
    assert (quiet.noise[[0, 6]] == 0).all()  # a step that does not choose is Euler's
    assert (quiet.pull[[0, 6]] == 0).all()
    assert plan(flow.times(50, 1350), candidates=25).evaluations == 1 + 48 * 25 + 1
