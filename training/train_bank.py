"""Short trainings on an accelerator, from a bank of examples (`training.make_bank`) that lies on the device whole.

``python -m training.train_bank NETWORK --bank DIR --workdir DIR [--init FOLDER] [--minutes M] --out FOLDER``

NETWORK is ``depth``, ``dust3r`` or ``flux`` (transformer and ControlNet). Losses and networks are those of
`training.train_depth`, `training.train_dust3r` and `training.train_flux`; batches are drawn and altered in the step
itself (`training.device_batches`). ``--init`` starts from weights of the same sizes, DUSt3R also from half of them; its
encoder is told what matches at first and its points are drawn together (``--agree`` there) in the last part. The
weights so far are written at every checkpoint; ``--refresh`` reads a bank that grows. On a GPU products are rounded to
TF32 and convolutions are products (`reangle_jax.nn.products`).
"""

import concurrent.futures
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from reangle_jax import checkpoints, commands, tiny
from reangle_jax.arrays import to_unit
from reangle_jax.errors import InputError, about
from reangle_jax.models.depth_anything import input_size
from reangle_jax.models.dust3r import Dust3rConfig
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.nn import products
from reangle_jax.nn.execution import Execution
from reangle_jax.painters.flux.conditions import known_cells
from reangle_jax.prompts import embed_prompts
from training import dust3r_start, train_depth, train_dust3r, train_flux, training
from training.bank import read_bank
from training.depth_frames import STORED
from training.device_batches import cut_out, depth_batch, hole_batch, pair_batch
from training.dust3r_pairs import SAME
from training.flux_look import Look
from training.pool import load_pool

LABELLED = 1 / 3  # share of the depth network's frames
AGREE_FROM = 0.5  # of DUSt3R's schedule
BATCH = {"depth": 64, "dust3r": 64, "flux": 32}


Load = Callable[[], dict[str, np.ndarray]]


class Bank:
    """What the device holds of a bank that may be growing.

    Args:
        load: reads it.
        every: seconds after which it is read again, beside the steps; None: once.
    """

    def __init__(self, load: Load, every: float | None):
        self.load, self.every = load, every
        self.read, self.arrays = time.monotonic(), jax.device_put(load())
        self._reader = concurrent.futures.ThreadPoolExecutor(1)
        self._next: concurrent.futures.Future | None = None

    def newest(self) -> dict[str, Array]:
        """The arrays as they were read last."""
        if self._next is not None and self._next.done():
            self.arrays, self._next = self._next.result(), None
            self.read = time.monotonic()
        if self.every and self._next is None and time.monotonic() - self.read > self.every:
            self._next = self._reader.submit(lambda: jax.device_put(self.load()))
        return self.arrays


def depth(args: Any) -> tuple[Callable, Any, Load, Callable]:
    """Loss, parameters, what the device is to hold and how weights are saved."""
    cutouts = cut_out(load_pool(args.cache).train.stamps)

    def load() -> dict[str, np.ndarray]:
        return depth_frames(args.bank, args.capacity) | cutouts

    config = train_depth.sized(7, args.wide, args.side)
    size = input_size(*STORED, short_side=args.side, multiple=config.patch_size)
    model = train_depth.initial_model(config, args.seed, read_bank(args.bank, "frames", 512)["images"])
    if args.init:
        with about("--init"):
            train_depth.carry_over(model, args.init)
    graphdef, parameters = nnx.split(model)

    def loss(parameters: Any, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
        labelled = round(LABELLED * args.batch) if "real_images" in batch else 0
        batch = depth_batch(batch, key, args.batch, size, labelled)
        return train_depth.loss(parameters, batch, key, graphdef=graphdef)

    def save(mean: Any) -> None:
        checkpoints.save_model(args.out, nnx.merge(graphdef, mean), config, dtype=np.float16)

    return loss, parameters, load, save


def depth_frames(bank: str, capacity: int | None) -> dict[str, np.ndarray]:
    """A bank's frames, and a teacher's, with ``real_`` before their names, where it has any by now.

    When the first labels come into a growing bank, the step, which is made for what it is given, is compiled again.
    """
    few = capacity and max(1, capacity // 4)
    labels = read_bank(bank, "labels", few) if list(Path(bank).glob("labels_*.npz")) else {}
    return read_bank(bank, "frames", capacity) | {"real_" + name: x for name, x in labels.items()}


def dust3r(args: Any) -> tuple[Callable, Any, Load, Callable]:
    """The same of DUSt3R: half of a batch's pairs are squares."""
    load = functools.partial(read_bank, args.bank, "views", args.capacity)
    config = Dust3rConfig.tiny()
    if args.init:
        model = dust3r_start.Trained(config, rngs=nnx.Rngs(args.seed))
        with about("--init"):
            dust3r_start.start_from(args.init, model)
    else:
        model = dust3r_start.initial_model(config, args.seed, read_bank(args.bank, "views", 512)["images"][:, 0])
    graphdef, parameters = nnx.split(model)

    def loss(parameters: Any, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
        agree = batch["late"]
        same = SAME + agree * (train_dust3r.SAME_AGREE - SAME)
        parts = []
        for square in (False, True):
            key, one = jax.random.split(key)
            pairs = pair_batch(batch, one, args.batch // 2, same, square=square)
            parts.append(train_dust3r.loss(parameters, pairs, one, graphdef=graphdef, agree=agree))
        return jax.tree.map(lambda *x: sum(x) / len(x), *parts)

    def save(mean: Any) -> None:
        checkpoints.save_model(args.out, nnx.merge(graphdef, mean).dust3r, config, dtype=np.float16)

    return loss, parameters, load, save


def flux(args: Any) -> tuple[Callable, Any, Load, Callable]:
    """The same of the small FLUX: whole pictures, which are also looked at."""
    load = functools.partial(read_bank, args.bank, "holes", args.capacity)
    text = np.asarray(embed_prompts(tiny.WEIGHTS / "text_encoder", [""], train_flux.TEXT_LENGTH))
    # Constants of the step, which may not fetch them from the device.
    constants = jax.device_get(Look.load(tiny.WEIGHTS / "flux_autoencoder", tiny.WEIGHTS / "featup"))
    configs = FluxConfig.tiny(), ControlNetConfig.tiny()
    networks = train_flux.build(*configs, args.seed, Execution("plain"))
    names = "transformer", "controlnet"
    if args.init:
        for network, name in zip(networks, names, strict=True):
            with about("--init"):
                checkpoints.load_into(network, Path(args.init).with_name(f"flux_{name}"))
    graphdefs, states = zip(*(nnx.split(network) for network in networks), strict=True)

    def loss(parameters: Any, batch: dict[str, Array], key: Array) -> tuple[Array, dict]:
        drawn, rest = jax.random.split(key)
        pictures = hole_batch(batch, drawn, args.batch)
        look = jax.tree.map(jnp.asarray, constants)
        coder = nnx.merge(*look.coder)

        def latents(picture: Array) -> Array:
            return coder.scale_latents(coder.encode(to_unit(picture))[0])

        known = known_cells(pictures["visible"], coder.config.spatial_compression_ratio)
        encoded = {"picture": latents(pictures["truth"]), "warp": latents(pictures["shown"]), "known": known}
        texts = {"text": jnp.asarray(np.repeat(text, args.batch, 0))}
        return train_flux.loss(parameters, pictures | encoded | texts, rest, graphdefs=graphdefs, look=look)

    def save(mean: Any) -> None:
        for name, graph, config in zip(names, graphdefs, configs, strict=True):
            folder = Path(args.out).with_name(f"flux_{name}")
            checkpoints.save_model(folder, nnx.merge(graph, mean[name]), config, dtype=np.float16)

    return loss, dict(zip(names, states, strict=True)), load, save


def main() -> None:
    """The command."""
    parser = training.command_line(__doc__, steps=6_000, out="", rate=1e-3)
    parser.add_argument("network", choices=tuple(BATCH))
    parser.add_argument("--bank", required=True, help="the examples' folder (training.make_bank)")
    parser.add_argument("--init", default=None, help="weights to start from; FLUX: the transformer's")
    parser.add_argument("--batch", type=commands.positive, default=None, help="frames, pairs or pictures a step")
    parser.add_argument(
        "--capacity", type=commands.positive, default=None, help="examples of each kind, whatever the bank has"
    )
    parser.add_argument("--wide", action="store_true", help="a depth network twice as wide")
    parser.add_argument(
        "--side", type=commands.positive, default=140, help="the shorter one of what a depth network sees, pixels"
    )
    parser.add_argument(
        "--refresh", type=commands.positive, default=None, help="read the bank again after so many seconds"
    )
    parser.add_argument(
        "--decay", type=commands.share, default=0.6, help="share of the schedule over which the rate falls"
    )
    args = parser.parse_args()
    if args.wide and args.network != "depth":
        raise InputError(f"--wide: {args.network} has one width: leave the flag out")
    if args.workers:
        raise InputError("--workers: batches are drawn on the device: leave the flag out")
    args.batch = args.batch or BATCH[args.network]
    if args.network == "dust3r" and args.batch % 2:
        raise InputError(f"--batch={args.batch}: half of the pairs are squares: give an even number")
    name = "flux_transformer" if args.network == "flux" else args.network
    args.out = args.out or str(Path(args.workdir) / "weights" / name)
    for flag, folder in (("--init", args.init), ("--out", args.out)):
        if args.network == "flux" and folder and Path(folder).name != name:
            raise InputError(f"{flag}={folder}: give a folder named {name}: the ControlNet's lies beside it")
    if jax.default_backend() == "gpu":
        jax.config.update("jax_default_matmul_precision", products.REDUCED)
    loss, parameters, load, save = {"depth": depth, "dust3r": dust3r, "flux": flux}[args.network](args)
    bank = Bank(load, args.refresh)
    print({name: x.shape for name, x in bank.arrays.items()}, flush=True)
    begun, late = time.monotonic(), [jax.device_put(np.float32(x)) for x in (0, 1)]

    def batch(rng: np.random.Generator, step: int) -> dict[str, Array]:
        del rng
        passed = (time.monotonic() - begun) / (60 * args.minutes) if args.minutes else step / args.steps
        return bank.newest() | {"late": late[passed > AGREE_FROM]}

    def evaluate(mean: Any) -> dict[str, float]:
        save(mean)
        print(f"weights written after {time.monotonic() - begun:.0f} s", flush=True)
        return {}

    more: dict[str, Any] = {"weight_decay": 1e-2, "adam": train_flux.ADAM} if args.network == "flux" else {}
    config = training.TrainConfig.of(args, save_every=75.0, decay=args.decay, ema=0.998, log_every=20, **more)
    save(training.train(loss, parameters, batch, config, args.workdir, evaluate=evaluate))


if __name__ == "__main__":
    commands.run(main)
