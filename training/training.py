"""The training loop that the small networks share: seeded, resumable, one compiled step for each batch shape."""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp

from reangle_jax import learning
from reangle_jax.errors import NotFiniteError
from training import records

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
        decay: fraction of the schedule.
        weight_decay: decoupled from the gradient, as in AdamW.
        max_grad_norm: gradients are clipped to this global norm.
        ema: decay of the running mean of the parameters that is evaluated and kept.
        seed: of the batches and of the noise.
        log_every: steps between two lines of the log.
        save_every: seconds between two checkpoints.
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

    @classmethod
    def of(cls, args: argparse.Namespace, **more: Any) -> "TrainConfig":
        """As the flags of `command_line` say."""
        flags = {"steps": args.steps, "minutes": args.minutes, "learning_rate": args.rate, "seed": args.seed}
        return cls(**flags, **more)

    def rate(self, progress: float, step: int) -> float:
        """The learning rate at a fraction of the schedule."""
        warm = min(1.0, (step + 1) / self.warmup)
        tail = min(1.0, max(0.0, (1.0 - progress) / self.decay))
        return self.learning_rate * warm * float(np.sin(0.5 * np.pi * tail) ** 2)


def command_line(doc: str | None, *, steps: int, out: str, rate: float) -> argparse.ArgumentParser:
    """The flags that every training command has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="checkpoints and the log; the same command goes on from here")
    parser.add_argument("--cache", default=".cache/pool", help="the image pool's folder")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, default=None, help="end the schedule after this many minutes instead")
    parser.add_argument("--rate", type=float, default=rate, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=out, help="where the weights go when training ends")
    return parser


def make_optimiser(parameters: dict[str, jax.Array], config: TrainConfig) -> optax.GradientTransformation:
    """Muon for the kernels (Jordan, 2024; Liu et al., 2025, arXiv 2502.16982), AdamW for everything else.

    Its rate is 1: the loop multiplies the updates by the rate of the moment.
    """

    def axes(path: str, ndim: int) -> optax.contrib.MuonDimensionNumbers | None:
        if "kernel" not in path or ndim < 2:
            return None
        # A stack of matrices is as many matrices; the taps of a convolution belong to its input.
        first = 1 if ndim == 3 else 0
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


def at_a_rate(
    optimiser: optax.GradientTransformation, freedom: dict[str, jax.Array] | None
) -> optax.GradientTransformation:
    """An optimiser whose updates are multiplied by the rate in its state, and by factors of their own."""

    def init(params: Any) -> Any:
        return optimiser.init(params), jnp.zeros((), jnp.float32)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, inner = optimiser.update(updates, state[0], params)
        if freedom is not None:
            updates = {name: u * jnp.broadcast_to(freedom[name], u.shape) for name, u in updates.items()}
        return jax.tree.map(lambda u: state[1] * u, updates), (inner, state[1])

    return optax.GradientTransformation(init, update)


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
        make_batch: (generator, step) -> batch of NumPy arrays; called ahead of time in a thread.
        config: the schedule.
        workdir: holds the checkpoints and ``log.jsonl``; the same call goes on where it stopped.
        evaluate: held-out numbers of the mean parameters, computed at each checkpoint and at the end.
        trainable: a pytree like ``parameters`` of float32 factors on the updates: 0 keeps a value as it is.
        distil: give the running mean of the parameters to ``loss`` too, as its last argument: a teacher.

    Returns:
        The mean parameters.
    """
    workdir = Path(workdir).absolute()
    leaves, tree = jax.tree_util.tree_flatten_with_path(parameters)
    flat = {jax.tree_util.keystr(path): value for path, value in leaves}
    names = list(flat)
    freedom = dict(zip(flat, jax.tree.leaves(trainable), strict=True)) if trainable is not None else None
    optimiser = at_a_rate(make_optimiser(flat, config), freedom)

    def restore(flat: dict[str, jax.Array]) -> Any:
        return tree.unflatten([flat[name] for name in names])  # jax sorts a dict's keys

    def loss_of(flat: dict[str, jax.Array], batch: Batch, key: jax.Array, mean: dict[str, jax.Array]):
        return loss(restore(flat), batch, key, *((restore(mean),) if distil else ()))

    update = learning.make_step(loss_of, optimiser, has_aux=True)

    def step_fn(state: dict[str, Any], batch: Batch, rate: jax.Array, key: jax.Array):
        learnt: learning.State = state["learnt"]
        learnt, numbers = update(learnt._replace(optimiser=(learnt.optimiser[0], rate)), batch, key, state["mean"])
        decay = jnp.minimum(config.ema, (1.0 + state["step"]) / (10.0 + state["step"]))
        # A value at rest stays exact.
        mean = jax.tree.map(lambda m, p: m + (1.0 - decay) * (p - m), state["mean"], learnt.parameters)
        return {"learnt": learnt, "mean": mean, "step": state["step"] + 1.0}, numbers

    step_fn = jax.jit(step_fn, donate_argnums=0)
    state = {
        "learnt": learning.init(flat, optimiser),
        "mean": jax.tree.map(jnp.array, flat),
        "step": jnp.zeros((), jnp.float32),
        "seconds": jnp.zeros((), jnp.float32),
    }
    with ocp.CheckpointManager(workdir / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=1)) as manager:
        latest = manager.latest_step()
        if latest is not None:
            state = manager.restore(latest, args=ocp.args.StandardRestore(state))
        mean = _loop(
            step_fn,
            state,
            make_batch,
            config,
            workdir,
            manager,
            lambda mean: evaluate(restore(mean)) if evaluate else {},
        )
        return restore(mean)


def _loop(step_fn, state, make_batch, config: TrainConfig, workdir: Path, manager, evaluate) -> Any:
    spent, first = float(state.pop("seconds")), int(state["step"])
    key = jax.random.key(config.seed)
    start = last_save = last_log = time.monotonic()
    elapsed = spent

    def write(line: dict[str, Any]) -> None:
        with (workdir / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def save(step: int) -> None:
        good = state["learnt"]._replace(healthy=jnp.ones((), bool))  # a step that was not changed nothing
        kept = {**state, "learnt": good, "seconds": jnp.float32(elapsed)}
        manager.save(step, args=ocp.args.StandardSave(kept))
        manager.wait_until_finished()
        held_out = evaluate(state["mean"])
        if held_out:
            write({"step": step, "seconds": round(elapsed), **held_out})
            print(f"step {step} {held_out}", flush=True)

    step = first
    for step, batch in records.batches(make_batch, config.seed, first):
        elapsed = spent + time.monotonic() - start
        progress = elapsed / (60 * config.minutes) if config.minutes else step / config.steps
        if progress >= 1:
            break
        rate = jnp.float32(config.rate(progress, step))
        inputs = jax.device_put(batch), rate, jax.random.fold_in(key, step)
        with jax.transfer_guard("disallow"):
            state, numbers = step_fn(state, *inputs)
        if step % config.log_every == 0:
            line = {name: float(value) for name, value in numbers.items()}
            if not state["learnt"].healthy:
                save(step + 1)
                raise NotFiniteError(
                    f"the loss or its gradient is not finite at step {step} or some before: lower --rate; the last "
                    "good state is kept"
                )
            now = time.monotonic()
            line = {"step": step, "seconds": round(elapsed), "rate": float(rate), **line}
            line["steps_a_second"] = config.log_every / (now - last_log) if step > first else None
            last_log = now
            write({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()})
        if time.monotonic() - last_save > config.save_every:
            save(step + 1)
            last_save = time.monotonic()
    if manager.latest_step() != step:
        save(step)
    return state["mean"]
