"""Stochastic control guidance (Huang et al., 2024, arXiv 2402.14285): of several next states the best is kept.

A choosing step draws S candidates of the next state, evaluates the model at each at the time it is of, decodes the
clean estimates, scores them, and goes on from the best; its evaluation is the one that the next step needs. Steps that
do not choose are Euler's. One program makes a round of candidates, whatever their step, their number or the picture.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reangle_jax.diffusion import flow
from reangle_jax.diffusion.flow import Coefficients

Scores = Callable[[Any, Array], Array]
"""``(arguments, decoded [S, ...]) -> [S, K]``; their sum over K decides, the more, the better."""


class Plan(NamedTuple):
    """What each step does: its coefficients, and how many next states it draws; 1 where it does not choose."""

    coefficients: Coefficients
    candidates: Int[np.ndarray, " steps"]

    @property
    def steps(self) -> int:
        """How many."""
        return len(self.candidates)

    @property
    def evaluations(self) -> int:
        """Of the model, in all: one of the noise and, but for the last step, which ends clean, one a candidate."""
        return 1 + int(self.candidates[:-1].sum())


def plan(
    times: Float[np.ndarray, " _"],
    *,
    candidates: int,
    eta: float = 1.0,
    noise: str = "ddim",
    window: tuple[float, float] = (0.0, 1.0),
    every: int = 1,
    fewest: int | None = None,
) -> Plan:
    """Which steps choose, and among how many.

    Args:
        times: see `flow.times`.
        candidates: S of the first choosing step; 1 chooses nothing.
        eta: strength of the candidates' noise.
        noise: its form, see `flow.noise_levels`; the last steps add none and do not choose.
        window: step i of N may choose if i / N is at least the first and below the second.
        every: of those, the first and then each k-th.
        fewest: S of the last choosing step, falling evenly; None keeps S.
    """
    levels = flow.noise_levels(times, eta, noise)
    places = np.arange(len(levels)) / len(levels)
    able = (places >= window[0]) & (places < window[1]) & (levels > 0) & (candidates > 1)
    chosen = np.flatnonzero(able)[::every]
    counts = np.ones(len(levels), int)
    counts[chosen] = np.linspace(candidates, fewest or candidates, len(chosen)).round()
    return Plan(Coefficients.of(times, np.where(counts > 1, levels, 0.0)), counts)


class Best(NamedTuple):
    """The best candidate so far, with its evaluation."""

    total: Float[Array, ""]
    index: Int[Array, ""]
    state: Float[Array, "*s"]
    velocity: Float[Array, "*s"]


@dataclasses.dataclass(frozen=True)
class Control:
    """The compiled steps of a model. Make one for all pictures: the programs are this object's."""

    predict: Callable[[Array, Array, Any], Array]  # ``(states [B, *s], time, arguments) -> velocities``, float32
    decode: Callable[[Array, Any], Array]  # ``(clean [B, *s], arguments) -> pictures``, for the scores
    # ``(states [B, *s], time, arguments) -> states``: what is done to next states before they are evaluated.
    settle: Callable[[Array, Array, Any], Array] = lambda states, time, arguments: states
    # Makes of the scores what is called with their arguments and the pictures: how they are divided.
    judge: Callable[[Scores], Scores] = lambda scores: scores
    # Candidates that are evaluated at once. What is chosen does not depend on it, but for rounding where the model's
    # own bits do.
    round_size: int = 1

    @functools.cached_property
    def _move(self) -> Callable[..., Array]:
        def move(state: Array, velocity: Array, c: Coefficients, arguments: Any) -> Array:
            return self.settle(flow.advance(state, velocity, c)[None], c.after, arguments)[0]

        return jax.jit(move)

    @functools.cached_property
    def _evaluate(self) -> Callable[..., Array]:
        return jax.jit(lambda state, time, arguments: self.predict(state[None], time, arguments)[0])

    @functools.cached_property
    def _round(self) -> Callable[..., tuple[Best, Array]]:
        def evaluate_round(
            best: Best,
            state: Array,
            velocity: Array,
            first: Array,
            count: Array,
            c: Coefficients,
            key: Array,
            arguments: Any,
            judging: Any,
            scores: Scores,
        ) -> tuple[Best, Array]:
            index = first + jnp.arange(self.round_size, dtype=jnp.int32)
            # Each candidate's noise is its own, by its number: rounds of another size draw the same.
            xi = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(key, k), state.shape, state.dtype))(index)
            states = flow.propose(jnp.broadcast_to(state, xi.shape), jnp.broadcast_to(velocity, xi.shape), c, xi)
            states = self.settle(states, c.after, arguments)
            velocities = self.predict(states, c.after, arguments)
            table = self.judge(scores)(judging, self.decode(flow.clean(states, velocities, c.after), arguments))
            totals = jnp.sum(table.astype(jnp.float32), axis=1)
            totals = jnp.where((index < count) & ~jnp.isnan(totals), totals, -jnp.inf)
            place = jnp.argmax(totals)  # the first of equals
            found = Best(totals[place], index[place], states[place], velocities[place])
            return jax.tree.map(lambda new, old: jnp.where(found.total > best.total, new, old), found, best), table

        return jax.jit(evaluate_round, static_argnames="scores")

    def choose(
        self,
        state: Array,
        velocity: Array,
        c: Coefficients,
        count: int,
        arguments: Any,
        *,
        key: Array,
        scores: Scores,
        judging: Any,
    ) -> tuple[Best, Float[np.ndarray, "S K"]]:
        """The best of ``count`` next states, and all their scores; not finite where no score is a number."""
        lost = jnp.full_like(state, jnp.nan)
        best = Best(jnp.float32(-jnp.inf), jnp.int32(-1), lost, lost)
        tables = []
        for first in range(0, count, self.round_size):
            best, table = self._round(
                best, state, velocity, jnp.int32(first), jnp.int32(count), c, key, arguments, judging, scores=scores
            )
            tables.append(table)
        return best, np.concatenate([np.asarray(table) for table in tables])[:count]

    def sample(
        self,
        noise: Float[Array, "*s"],
        plan: Plan,
        arguments: Any,
        *,
        key: Array,
        scores: Scores | None = None,
        judging: Any = None,
        saved: Mapping[str, np.ndarray] | None = None,
        on_step: Callable[[Mapping[str, np.ndarray], int, np.ndarray | None, int], None] = lambda *_: None,
    ) -> Float[Array, "*s"]:
        """All steps from noise to the clean state.

        Args:
            noise: unit noise, float32.
            plan: what each step does.
            arguments: of `predict`, `decode` and `settle`: weights, conditions.
            key: of the candidates' noise.
            scores: what candidates are chosen by; None chooses nothing. Compiled for each function object.
            judging: its first argument.
            saved: what ``on_step`` was last given, to go on from.
            on_step: called after each step with what `saved` takes, the step's number, the scores of its candidates
                (None if it did not choose) and which was kept.
        """
        state, velocity, done = noise, jnp.zeros_like(noise), 0
        if saved:
            state, velocity, done = jnp.asarray(saved["state"]), jnp.asarray(saved["velocity"]), int(saved["step"])
        else:
            velocity = self._evaluate(state, plan.coefficients.step(0).time, arguments)
        for index in range(done, plan.steps):
            c, table, kept = plan.coefficients.step(index), None, 0
            if scores is not None and plan.candidates[index] > 1:
                best, table = self.choose(
                    state,
                    velocity,
                    c,
                    int(plan.candidates[index]),
                    arguments,
                    key=jax.random.fold_in(key, index),
                    scores=scores,
                    judging=judging,
                )
                state, velocity, kept = best.state, best.velocity, int(best.index)
            else:
                state = self._move(state, velocity, c, arguments)
                if index < plan.steps - 1:  # the last one is clean
                    velocity = self._evaluate(state, c.after, arguments)
            record = {"state": np.asarray(state), "velocity": np.asarray(velocity), "step": np.int64(index + 1)}
            on_step(record, index, table, kept)
        return state
