"""The one training loop: a guarded step, resumed, stopped and logged, and ended where the numbers are not finite.

First ``step = make_step(loss, optimiser)``, then ``state, history = train(step, init(parameters, optimiser), ...)``.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from reangle_jax import mesh
from reangle_jax.errors import NotFiniteError
from reangle_jax.progress import progress
from reangle_jax.saved_states import SavedStates
from reangle_jax.stopping import Stop

LOG_EVERY = 10  # steps between two looks at the numbers: what is not finite is seen within so many
SHOWN = 50  # steps whose mean loss the bar shows

_log = logging.getLogger(__name__)

History = dict[str, list[float]]
"""Each number of each step done: ``loss``, ``gradient_norm``, ``update_norm`` and what else the loss gives."""
Write = Callable[[int, History], None]
"""Logs the numbers of the steps from the first that it is given on."""


class State(NamedTuple):
    """What a step changes."""

    parameters: Any  # a pytree of arrays or variables
    optimiser: Any  # its state
    # False from the first step on whose loss or gradient is not finite; that step and those after it change nothing, so
    # that the last good state is at hand when the numbers are looked at.
    healthy: Bool[Array, ""]


def init(parameters: Any, optimiser: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return State(parameters, optimiser.init(parameters), jnp.ones((), bool))


def make_step(
    loss: Callable[..., Any], optimiser: optax.GradientTransformation, *, has_aux: bool = False
) -> Callable[..., tuple[State, dict[str, Array]]]:
    """The step ``(state, *arguments) -> (state, numbers)``, jitted; the state is donated.

    Args:
        loss: ``loss(parameters, *arguments)``: what is minimised by the parameters alone. Frozen weights are arguments:
            no gradient and no copy of them is ever made.
        optimiser: its updates are added.
        has_aux: the loss gives further numbers too, ``(scalar, {name: scalar})``.

    Returns:
        The step. Its numbers are ``loss``, the global norms ``gradient_norm`` (before any clipping) and
        ``update_norm``, and the loss's own, float32 scalars on the device.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, *arguments: Any) -> tuple[State, dict[str, Array]]:
        value, gradients = jax.value_and_grad(loss, has_aux=has_aux)(state.parameters, *arguments)
        value, further = value if has_aux else (value, {})
        updates, moments = optimiser.update(gradients, state.optimiser, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        numbers = {"loss": value, "gradient_norm": optax.tree.norm(gradients), "update_norm": optax.tree.norm(updates)}
        healthy = state.healthy & jnp.isfinite(value) & jnp.isfinite(numbers["gradient_norm"])
        new = State(parameters, moments, healthy)
        kept = jax.tree.map(lambda after, before: jnp.where(healthy, after, before), new, state)
        # In the layout they came in: one program serves all steps.
        return mesh.constrain(kept._replace(healthy=healthy)), {**numbers, **further}

    return step


def train(
    step: Callable[..., tuple[State, dict[str, Array]]],
    state: State,
    arguments: Callable[[int], tuple],
    *,
    name: str,
    steps: int | None,
    over: Callable[[int, History], bool],
    checkpoints: Path | None,
    due: Callable[[int], bool],
    log: Callable[[History], contextlib.AbstractContextManager[Write]],
    stop: Stop,
    rate: Callable[[int], float],
    mend: Callable[[int], str],
    saved: Callable[[State, History], None] = lambda state, history: None,
    seen: bool = True,
) -> tuple[State, History]:
    """Takes the steps that are not done yet; several processes take them together.

    Call it inside of ``Stop.at_safe_points``, and save what it gives inside of the same block: a signal in the last
    step then ends the process after that.

    Args:
        step: from :func:`make_step`.
        state: where training starts if nothing is saved; its layout is the saved one's.
        arguments: of the step with a number, from 0; all of them on the device already. Asked for in order.
        name: of the work, for the bar and the logs.
        steps: how many in all, for the bar; None if that is not known.
        over: whether training ends after so many steps, whose numbers, as far as looked at, it gets too. Asked before
            the first step and after every one.
        checkpoints: folder of the saved state: the newest alone, with the numbers of all steps before; None in a
            process that does not see it.
        due: whether the state is to be saved after so many steps; it is, whenever the work is stopped before its end.
        log: given the numbers so far, a block inside of which ``write(first, history)`` logs those of the steps from
            ``first`` on: :func:`events`.
        stop: asked after every step.
        rate: the learning rate of the step with a number, for the bar.
        mend: what to do, in words, if the numbers of the step with this number are the first that are not finite.
        saved: told of every state that was due, while it is saved.
        seen: whether all processes see that folder.

    Returns:
        The state after the last step, and the numbers of every step.

    Raises:
        NotFiniteError: a loss or a gradient; the state before that step is saved.
        Stopped: a signal came before the last step; the state is saved.
    """
    with SavedStates(checkpoints, seen=seen) as states:
        state, history = _restored(states, state)
        done = len(history["loss"]) if history else 0
        if done:
            _log.info("%s goes on after step %d", name, done)
        pending: list[dict[str, Array]] = []
        with log(history) as write, progress(steps, name, initial=done) as bar:

            def settle(state: State) -> None:
                first = len(history.get("loss", ()))
                fault = _absorb(history, pending)
                write(first, history)
                if fault:
                    _save(states, state, history)
                    raise NotFiniteError(f"{name}: {fault}: {mend(len(history.get('loss', ())))}")
                bar.set(loss=float(np.mean(history["loss"][-SHOWN:])), rate=rate(len(history["loss"]) - 1))

            ended = over(done, history)
            while not ended:
                inputs = arguments(done)
                with jax.transfer_guard("disallow"):
                    state, numbers = step(state, *inputs)
                pending.append(numbers)
                done += 1
                ended = over(done, history)
                halt, wanted = stop.requested and not ended, due(done)
                if done % LOG_EVERY == 0 or ended or wanted or halt:
                    settle(state)
                bar.update()
                if wanted or halt:
                    _save(states, state, history)
                if wanted:
                    saved(state, history)
                if halt:
                    states.wait()
                    stop.now()
    return state, history


def _absorb(history: History, pending: list[dict[str, Array]]) -> str | None:
    """Brings numbers to the host, which stay on the device until then so that no step waits.

    Returns:
        What is not finite, if something is: the numbers from that step on are left out.
    """
    for one in jax.device_get(pending):
        number = len(history.get("loss", ())) + 1
        for key in ("loss", "gradient_norm"):
            if not np.isfinite(one[key]):
                return f"the {key.replace('_', ' ')} of step {number} is {one[key]}"
        for key, value in one.items():
            history.setdefault(key, []).append(float(value))
    pending.clear()
    return None


def _save(states: SavedStates, state: State, history: History) -> None:
    done = len(history.get("loss", ()))
    if done:
        numbers = {key: list(values) for key, values in history.items()}  # written while further steps are taken
        states.save(done, {"parameters": state.parameters, "optimiser": state.optimiser}, numbers)


def _restored(states: SavedStates, state: State) -> tuple[State, History]:
    found = states.restore({"parameters": state.parameters, "optimiser": state.optimiser})
    return (state, {}) if found is None else (state._replace(**found[0]), found[1])


@contextlib.contextmanager
def events(folder: Path, name: str, rate: Callable[[int], float], history: History) -> Iterator[Write]:
    """A log of TensorBoard's events in a folder, for :func:`train`.

    What an earlier start has written goes, and those of ``history`` take its place: steps after its last saved state
    are taken again, and would be there twice.
    """
    from tensorboardX import SummaryWriter  # late: it imports torch wherever that is installed

    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()
    writer = SummaryWriter(str(folder))

    def write(first: int, history: History) -> None:
        for number in range(first, len(history.get("loss", ()))):
            for key, values in history.items():
                writer.add_scalar(f"{name}/{key}", values[number], number)
            writer.add_scalar(f"{name}/learning_rate", rate(number), number)
        writer.flush()

    with contextlib.closing(writer):
        write(0, history)
        yield write
