"""How the small networks are trained: `learning.train` by steps or by the clock, seeded, with a mean that is kept."""

import argparse
import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from reangle_jax import commands, learning
from reangle_jax.stopping import Stop
from training import feeding

Batch = Any
Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a network is trained.

    Attributes:
        steps: the length of the schedule.
        minutes: if set, the schedule follows the clock and ends after that many minutes of training, however many steps
            that makes: for a machine whose speed is not known. The seed then no longer fixes the result.
        learning_rate: the highest rate; warmed up over ``warmup`` steps, constant, then a cosine to zero over the last
            ``decay`` of the schedule.
        warmup: steps.
        decay: fraction of the schedule; 0: constant.
        weight_decay: decoupled from the gradient, as in AdamW.
        max_grad_norm: gradients are clipped to this global norm.
        ema: decay of the running mean of the parameters that is evaluated and kept.
        seed: of the batches and of the noise.
        log_every: steps between two lines of the log.
        save_every: seconds between two checkpoints.
        adam: matrices with one of these in their path are AdamW's too.
        workers: processes that make the batches, which they do not change; 0: a thread.
    """

    steps: int
    minutes: float | None = None
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.4
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    ema: float = 0.99
    seed: int = 0
    log_every: int = 25
    save_every: float = 120.0
    adam: tuple[str, ...] = ()
    workers: int = 0

    @classmethod
    def of(cls, args: argparse.Namespace, **more: Any) -> "TrainConfig":
        """As the flags of `command_line` say."""
        flags = {"steps": args.steps, "minutes": args.minutes, "learning_rate": args.rate, "seed": args.seed}
        return cls(**(flags | {"workers": args.workers} | more))

    def rate(self, progress: float, step: int) -> float:
        """The learning rate at a fraction of the schedule."""
        warm = min(1.0, (step + 1) / self.warmup)
        tail = min(1.0, max(0.0, (1.0 - progress) / self.decay)) if self.decay else 1.0
        return self.learning_rate * warm * float(np.sin(0.5 * np.pi * tail) ** 2)


def command_line(doc: str | None, *, steps: int, out: str, rate: float) -> argparse.ArgumentParser:
    """The flags that every training command has."""
    parser = commands.parser(doc)
    parser.add_argument("--workdir", required=True, help="checkpoints and the log; the same command goes on from here")
    parser.add_argument("--cache", default=".cache/pool", help="the image pool's folder")
    parser.add_argument("--steps", type=commands.positive, default=steps)
    parser.add_argument(
        "--minutes",
        type=commands.above_zero,
        default=None,
        help="end the schedule after so many minutes, compiling included",
    )
    parser.add_argument("--rate", type=commands.above_zero, default=rate, help="the highest learning rate")
    parser.add_argument("--seed", type=commands.count, default=0)
    parser.add_argument(
        "--workers", type=commands.count, default=0, help="processes that make batches ahead; 0: a thread"
    )
    parser.add_argument("--out", default=out, help="where the weights go when training ends")
    return parser


def make_optimiser(parameters: dict[str, jax.Array], config: TrainConfig) -> optax.GradientTransformation:
    """Muon for the kernels (Jordan, 2024; Liu et al., 2025, arXiv 2502.16982), AdamW for everything else.

    Its rate is 1: the loop multiplies the updates by the rate of the moment.
    """

    def axes(path: str, ndim: int) -> optax.contrib.MuonDimensionNumbers | None:
        if "kernel" not in path or ndim < 2 or any(part in path for part in config.adam):
            return None
        # A stack of matrices is as many matrices; the taps of a convolution belong to its input.
        first = ndim - 2 if ndim == 3 or "qkv_kernel" in path else 0
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, ndim - 1)), ndim - 1)

    numbers: Any = {path: axes(path, value.ndim) for path, value in parameters.items()}
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.contrib.muon(
            1.0,
            weight_decay=config.weight_decay,
            adam_b2=0.99,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=numbers,
            consistent_rms=0.2,  # updates as large as Adam's, so that one rate serves both
        ),
    )


class Held(NamedTuple):
    """What the optimiser keeps.

    Attributes:
        inner: the state of the transformation within.
        rate: what updates are multiplied by: set before each step.
        mean: the running mean of the parameters.
        step: how many were taken.
    """

    inner: Any
    rate: jax.Array
    mean: dict[str, jax.Array]
    step: jax.Array


def at_a_rate(
    optimiser: optax.GradientTransformation, freedom: dict[str, jax.Array] | None, ema: float
) -> optax.GradientTransformation:
    """An optimiser whose updates are multiplied by a rate and their own factors, and a mean of the parameters."""

    def init(params: Any) -> Held:
        zero = jnp.zeros((), jnp.float32)
        return Held(optimiser.init(params), zero, jax.tree.map(jnp.array, params), zero)

    def update(updates: Any, state: Held, params: Any = None) -> tuple[Any, Held]:
        updates, inner = optimiser.update(updates, state.inner, params)
        if freedom is not None:
            updates = {name: u * jnp.broadcast_to(freedom[name], u.shape) for name, u in updates.items()}
        updates = jax.tree.map(lambda u: state.rate * u, updates)
        decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
        # A value at rest stays exact.
        after = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda m, p: m + (1.0 - decay) * (p - m), state.mean, after)
        return updates, Held(inner, state.rate, mean, state.step + 1.0)

    # optax's own types want any state; ours has names.
    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


class Schedule:
    """How far training is, by steps or by the clock, and what follows from that.

    Args:
        config: the schedule.
        make_batch: as `train` has it.

    Attributes:
        rates: of the steps of this start, by number.
        saved: when the state was last saved, on the monotonic clock.
    """

    def __init__(self, config: TrainConfig, make_batch: Callable[[np.random.Generator, int], Batch]):
        self.config, self.make_batch = config, make_batch
        self.rates: dict[int, float] = {}
        self._batches: Iterator[tuple[int, Batch]] | None = None
        self.key = jax.random.key(config.seed)
        self.saved = self._begun = time.monotonic()
        self._done = 0

    @property
    def seconds(self) -> float:
        """Of training, those of earlier starts too."""
        return time.monotonic() - self._begun

    @property
    def progress(self) -> float:
        """The fraction of the schedule that is behind."""
        minutes = self.config.minutes
        return self.seconds / (60 * minutes) if minutes else self._done / self.config.steps

    def over(self, done: int, history: learning.History) -> bool:
        """Whether training ends after so many steps."""
        if self._batches is None:
            self._batches = feeding.batches(self.make_batch, self.config.seed, done, self.config.workers)
            self._begun -= history["seconds"][-1] if done else 0.0
        self._done = done
        return self.progress >= 1

    def due(self, done: int) -> bool:
        """Whether to save: at the end, and every now and then."""
        return self.progress >= 1 or time.monotonic() - self.saved > self.config.save_every

    def arguments(self, number: int) -> tuple:
        """Batch, rate, seconds and key of the next step."""
        assert self._batches is not None, "over comes first"
        _, batch = next(self._batches)
        self.rates[number] = self.config.rate(min(1.0, self.progress), number)
        numbers = jnp.float32(self.rates[number]), jnp.float32(self.seconds)
        return jax.device_put(batch), *numbers, jax.random.fold_in(self.key, number)


class Log:
    """``log.jsonl``: a line for every so many steps, and one for every held-out measurement."""

    def __init__(self, path: Path, every: int):
        self.path, self.every = path, every

    def line(self, fields: dict[str, Any]) -> None:
        """Writes a line."""
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()}) + "\n")

    def steps(self, first: int, history: learning.History) -> None:
        """Writes the lines of the steps from the first on."""
        for number in range(first, len(history.get("loss", ()))):
            if number % self.every == 0:
                seconds, before = history["seconds"], number - self.every
                speed = self.every / max(1e-9, seconds[number] - seconds[before]) if before >= 0 else None
                values = {key: values[number] for key, values in history.items()}
                self.line({"step": number, **values, "seconds": round(seconds[number]), "steps_a_second": speed})


def train(
    loss: Loss,
    parameters: Any,
    make_batch: Callable[[np.random.Generator, int], Batch],
    config: TrainConfig,
    workdir: str | Path,
    *,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    trainable: Any = None,
    distil: bool = False,
) -> Any:
    """Minimises ``loss`` and returns the running mean of the parameters.

    Args:
        loss: (parameters, batch, key) -> (loss, further numbers for the log). Compiled once for each batch shape.
        parameters: a pytree of arrays: where training starts when ``workdir`` is empty.
        make_batch: (generator, step) -> batch of NumPy arrays; called ahead of time, in a thread or in ``workers``.
        config: the schedule.
        workdir: holds the checkpoints and ``log.jsonl``; the same call goes on where it stopped.
        evaluate: held-out numbers of the mean parameters, computed at each checkpoint and at the end.
        trainable: a pytree like ``parameters`` of float32 factors on the updates: 0 keeps a value as it is.
        distil: give the running mean of the parameters to ``loss`` too, as its last argument: a teacher.

    Returns:
        The mean parameters.

    Raises:
        NotFiniteError: a loss or a gradient; the last good state is saved.
        Stopped: a signal came; the state is saved.
    """
    workdir = Path(workdir).absolute()
    leaves, tree = jax.tree_util.tree_flatten_with_path(parameters)
    flat = {jax.tree_util.keystr(path): value for path, value in leaves}
    names = list(flat)
    freedom = dict(zip(flat, jax.tree.leaves(trainable), strict=True)) if trainable is not None else None
    optimiser = at_a_rate(make_optimiser(flat, config), freedom, config.ema)

    def restore(flat: dict[str, jax.Array]) -> Any:
        return tree.unflatten([flat[name] for name in names])  # jax sorts a dict's keys

    def loss_of(flat: dict[str, jax.Array], batch: Batch, key: jax.Array, mean: dict[str, jax.Array]):
        return loss(restore(flat), batch, key, *((restore(mean),) if distil else ()))

    update = learning.make_step(loss_of, optimiser, has_aux=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: learning.State, batch: Batch, rate: jax.Array, seconds: jax.Array, key: jax.Array):
        held = state.optimiser._replace(rate=rate)
        state, numbers = update(state._replace(optimiser=held), batch, key, held.mean)
        return state, {**numbers, "rate": rate, "seconds": seconds}

    schedule, log = Schedule(config, make_batch), Log(workdir / "log.jsonl", config.log_every)

    def measure(state: learning.State, history: learning.History) -> None:
        held_out = evaluate(restore(state.optimiser.mean)) if evaluate else {}
        if held_out:
            done = len(history["loss"])
            log.line({"step": done, "seconds": round(schedule.seconds), **held_out})
            print(f"step {done} {held_out}", flush=True)
        schedule.saved = time.monotonic()

    workdir.mkdir(parents=True, exist_ok=True)
    with Stop().installed() as stop, stop.at_safe_points():
        state, _ = learning.train(
            step,
            learning.init(flat, optimiser),
            schedule.arguments,
            name="training",
            steps=None if config.minutes else config.steps,
            over=schedule.over,
            checkpoints=workdir / "checkpoints",
            due=schedule.due,
            log=lambda history: contextlib.nullcontext(log.steps),
            stop=stop,
            rate=schedule.rates.__getitem__,
            mend=lambda number: "lower --rate; the last good state is kept",
            saved=measure,
        )
    return restore(state.optimiser.mean)
