"""Trains the small FLUX, transformer and ControlNet together, to paint the holes that warps leave.

``python -m training.train_flux --workdir DIR --pictures DIR --held-out DIR [--minutes M] [--init FOLDER] [--look]``

Published architectures; the objective is the clean picture that a rectified flow's velocity points to. Painting begins
at the picture with its holes filled (Telea), `STRENGTH` of it noise, and goes straight to the truth; the ControlNet is
given that filling and which cells are known. Half of the pictures of a step go on from what was found there, part of
the way, as the sampler does: so that later steps learn to mend what the first one makes. Known cells weigh a tenth:
what is painted there is pasted over. Guidance is drawn at random and so ignored. With ``--look`` the clean estimate is
also decoded and compared with the truth in the holes, by its pixels, by the small DINO's features and by what of its
error repeats from token to token. Every picture
(`training.holes`) is encoded once and kept in the workdir; steps see windows of the latents, or whole ones in turn.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float16, UInt8

from reangle_jax import checkpoints, commands, tiny
from reangle_jax.arrays import to_unit
from reangle_jax.config import get_tiny
from reangle_jax.diffusion import flow
from reangle_jax.errors import about
from reangle_jax.geometry.splat import infill
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.controlnet import FluxControlNet
from reangle_jax.models.flux.tokens import pack, unpack
from reangle_jax.models.flux.transformer import FluxTransformer
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.nn.execution import Execution
from reangle_jax.painters.flux.conditions import known_cells
from reangle_jax.painters.flux.networks import T5_LENGTH, TINY
from reangle_jax.prompts import embed_prompts
from training import records, training
from training.flux_look import PIXELS, Look, looked_at
from training.holes import PART, Holes, load_holes

WEIGHTS = tiny.WEIGHTS / "flux_transformer"
CONTROLNET = "flux_controlnet"
# (pictures, rows, columns) in pixels, in turn; every further shape is a further program to compile.
WINDOWS = ((8, 64, 96),)
WHOLE = ((8, 64, 96), (3, 128, 192))
TEXT_LENGTH = T5_LENGTH[TINY]
KNOWN_WEIGHT = 0.1
LATER = (0.3, 0.95)  # of `STRENGTH`: the times of later steps
TEXT_DROPOUT = 0.1
# Of the noise, over the filled picture, that painting begins with.
STRENGTH: float = get_tiny().to_dict()["first_frames"]["strength"]
# Of the latents' error, and of how the clean estimate looks where it is looked at.
LATENT_WEIGHT, PIXEL_WEIGHT, FEATURE_WEIGHT, REPEAT_WEIGHT = 0.5, 1.0, 4.0, 8.0
ROLLED = 0.5  # share of the steps in which features are taken on another grid than that of whole patches
CONTROL_SCALE = (0.8, 1.1)
GUIDANCE = (1.0, 8.0)
EXECUTION = Execution("mapped")
# Matrices that are not worth Muon's work: they see one vector a picture.
ADAM = ("embedders", "['norm']['linear']", "['head']['linear']")


class Latents(NamedTuple):
    """A picture as a training step needs it: scaled posterior means.

    Attributes:
        picture: of the truth.
        warp: of what is known, its holes filled.
        known: the cells of which every pixel is known.
        truth: the picture itself.
        shown: what is known of it, its holes filled.
        visible: False in the holes.
        prompt: may be empty.
    """

    picture: Float16[np.ndarray, "h w C"]
    warp: Float16[np.ndarray, "h w C"]
    known: Bool[np.ndarray, "h w"]
    truth: UInt8[np.ndarray, "H W 3"]
    shown: UInt8[np.ndarray, "H W 3"]
    visible: Bool[np.ndarray, "H W"]
    prompt: str


def encoded(folder: str, pictures: Sequence[Holes]) -> Iterator[Latents]:
    """Pictures through an autoencoder."""
    with about("--autoencoder"):
        coder = checkpoints.load(folder, AutoencoderConfig, Autoencoder)
    graphdef, state = nnx.split(coder)

    @jax.jit
    def encode(state: nnx.State, pair: Array, visible: Array) -> tuple[Array, Array]:
        network = nnx.merge(graphdef, state)
        mean, _ = network.encode(to_unit(pair))
        known = known_cells(visible[None], coder.config.spatial_compression_ratio)[0]
        return network.scale_latents(mean).astype(jnp.float16), known

    for holes in pictures:
        shown = infill(holes.warp[None], holes.visible[None])[0]
        latents, known = encode(state, jnp.stack([holes.picture, shown]), holes.visible)
        picture, warp = np.asarray(latents)
        yield Latents(picture, warp, np.asarray(known), holes.picture, shown, holes.visible, holes.prompt)


def encode_all(autoencoder: str, pictures: str, folder: Path, parts: slice = slice(None)) -> None:
    """Makes the latents of every picture, where they are missing."""
    holes = load_holes(pictures)
    for first in list(range(0, len(holes), PART))[parts]:
        batch = holes[first : first + PART]
        if records.write(folder, Latents, first, encoded(autoencoder, batch)):
            print(f"encoded pictures {first} to {first + len(batch) - 1}", flush=True)


def load_latents(folder: Path, text_folder: str) -> dict[str, Any]:
    """Every encoded picture of a folder, and its prompt's embedding by the number of the prompt."""
    *arrays, texts = zip(*records.read(folder, Latents, "training.train_flux"), strict=True)
    unique = sorted({"", *texts})  # the empty one is first
    with about("--text"):
        tokens = embed_prompts(Path(text_folder), unique, TEXT_LENGTH).astype(np.float16)
    number = np.array([unique.index(text) for text in texts])
    stacked = {name: np.stack(values) for name, values in zip(Latents._fields, arrays, strict=False)}
    return stacked | {"number": number, "tokens": tokens}


def make_batch(
    rng: np.random.Generator,
    step: int,
    *,
    data: dict[str, Any],
    windows: Sequence[tuple[int, int, int]],
    ratio: int = 4,
) -> dict[str, np.ndarray]:
    """A batch of windows, each about a cell of a hole; some of their texts blanked."""
    size, rows, columns = windows[step % len(windows)]
    rows, columns = rows // ratio, columns // ratio
    batch: dict[str, list[np.ndarray]] = {name: [] for name in Latents._fields if name in data}
    pick = rng.integers(len(data["picture"]), size=size)
    for k in pick:
        height, width = data["known"][k].shape
        holes = np.flatnonzero(~data["known"][k])
        y, x = divmod(int(rng.choice(holes)), width) if len(holes) else (0, 0)
        top = int(np.clip(y - rng.integers(rows), 0, height - rows))
        left = int(np.clip(x - rng.integers(columns), 0, width - columns))
        for name, values in batch.items():
            f = ratio if name in PIXELS else 1
            values.append(data[name][k, f * top : f * (top + rows), f * left : f * (left + columns)])
    text = np.where(rng.random(size) < TEXT_DROPOUT, 0, data["number"][pick])
    return {name: np.stack(values) for name, values in batch.items()} | {"text": data["tokens"][text]}


def predict(
    graphdefs: tuple[nnx.GraphDef, nnx.GraphDef],
    parameters: dict[str, nnx.State],
    x: Array,
    condition: Array,
    text: Array,
    t: Array,
    guidance: Array,
    scale: Array | float,
) -> Array:
    """The velocity of latents [B, h, w, C] as packed tokens; ``condition`` is packed."""
    grid = x.shape[1] // 2, x.shape[2] // 2
    shared = (text, text.mean(1), t, guidance, grid)
    tokens = pack(x)
    residuals = nnx.merge(graphdefs[1], parameters["controlnet"])(tokens, condition, *shared, scale)
    return nnx.merge(graphdefs[0], parameters["transformer"])(tokens, *shared, residuals)


def loss(
    parameters: dict[str, nnx.State],
    batch: dict[str, Array],
    key: Array,
    *,
    graphdefs: tuple[nnx.GraphDef, nnx.GraphDef],
    look: Look | None = None,
) -> tuple[Array, dict[str, Array]]:
    """The weighted error of the clean estimate, and its mean in the holes alone; with `looked_at` if there is a look.

    Where painting begins, of all pictures, and later, of half of them (``_later`` in the figures' names).
    """
    keys = jax.random.split(key, 6)
    z, known = batch["picture"].astype(jnp.float32), batch["known"][..., None].astype(jnp.float32)
    text, warp = batch["text"].astype(jnp.float32), batch["warp"].astype(jnp.float32)
    size, grid = len(z), (z.shape[1] // 2, z.shape[2] // 2)
    guidance = jnp.exp(jax.random.uniform(keys[2], (size,), minval=np.log(GUIDANCE[0]), maxval=np.log(GUIDANCE[1])))
    scale = jax.random.uniform(keys[3], (), minval=CONTROL_SCALE[0], maxval=CONTROL_SCALE[1])
    condition = pack(jnp.concatenate([warp, known], -1))
    hole = jnp.broadcast_to(1 - known, z.shape)
    weights = KNOWN_WEIGHT + (1 - KNOWN_WEIGHT) * hole

    def clean(x: Array, t: Array) -> Array:
        n = len(x)
        v = predict(graphdefs, parameters, x, condition[:n], text[:n], t, guidance[:n], scale)
        return x - t[:, None, None, None] * unpack(v, grid)

    begin = flow.noised(warp, jax.random.normal(keys[1], z.shape), STRENGTH)
    found = clean(begin, jnp.full((size,), STRENGTH))
    # Half of them go on. One share from each of equal slices: the loss varies less from step to step than with
    # independent ones.
    half = (size + 1) // 2
    share = (jnp.arange(half, dtype=jnp.float32) + jax.random.uniform(keys[0], (half,))) / half
    share = LATER[0] + (LATER[1] - LATER[0]) * share
    way = jax.lax.stop_gradient(found[:half])
    again = clean(way + share[:, None, None, None] * (begin[:half] - way), STRENGTH * share)

    looks = ({}, {})
    if look is not None:
        shift = jax.random.randint(keys[4], (2,), 0, look.patch_size)
        looks = looked_at(look, (found, again), batch, jnp.where(jax.random.bernoulli(keys[5], ROLLED), shift, 0))
    figures, values = [], []
    for estimate, seen in zip((found, again), looks, strict=True):
        n = len(estimate)
        error = jnp.square(estimate - z[:n])
        value, in_holes = (jnp.sum(w[:n] * error) / jnp.sum(w[:n]) for w in (weights, hole))
        if seen:
            looks_like = PIXEL_WEIGHT * seen["pixels"] + FEATURE_WEIGHT * seen["features"]
            value = LATENT_WEIGHT * value + looks_like + REPEAT_WEIGHT * seen["repeats"]
        values.append(n * value)
        figures.append({"in_holes": in_holes, **seen})
    more = figures[0] | {f"{name}_later": figure for name, figure in figures[1].items()}
    return (values[0] + values[1]) / (size + half), more


def build(
    config: FluxConfig, control: ControlNetConfig, seed: int, execution: Execution = EXECUTION
) -> tuple[FluxTransformer, FluxControlNet]:
    """Both networks, computed in float32."""
    rngs = nnx.Rngs(seed)
    return FluxTransformer(config, execution=execution, rngs=rngs), FluxControlNet(
        control, execution=execution, rngs=rngs
    )


def main() -> None:
    """The command."""
    parser = training.command_line(__doc__, steps=6_000, out=str(WEIGHTS), rate=2e-3)
    parser.add_argument("--pictures", required=True, help="a folder of pictures with holes (training.holes)")
    parser.add_argument("--held-out", required=True, help="the same of pictures that are never trained on")
    parser.add_argument("--autoencoder", default=str(WEIGHTS.with_name("flux_autoencoder")))
    parser.add_argument("--text", default=str(WEIGHTS.with_name("text_encoder")))
    parser.add_argument("--init", default=None, help="a transformer's folder to start from; its ControlNet lies beside")
    parser.add_argument("--whole", action="store_true", help="every other step sees whole pictures")
    parser.add_argument("--look", action="store_true", help="also learn how paintings look in the holes")
    parser.add_argument("--features", default=str(WEIGHTS.with_name("featup")), help="the small DINO's folder")
    parser.add_argument("--encode-only", action="store_true", help="make the latents and stop")
    args = parser.parse_args()
    workdir = Path(args.workdir)
    latents = workdir.with_name("flux_latents")
    encode_all(args.autoencoder, args.held_out, latents / "held_out")
    encode_all(args.autoencoder, args.pictures, latents / "train")
    if args.encode_only:
        return
    data, unseen = (load_latents(latents / name, args.text) for name in ("train", "held_out"))
    print(f"{len(data['picture'])} pictures", flush=True)

    configs = FluxConfig.tiny(), ControlNetConfig.tiny()
    networks = build(*configs, args.seed)
    if args.init:
        for network, folder in zip(networks, (Path(args.init), Path(args.init).with_name(CONTROLNET)), strict=True):
            with about("--init"):
                checkpoints.load_into(network, folder)
    (graphdef, transformer), (control_graphdef, controlnet) = (nnx.split(network) for network in networks)
    graphdefs = graphdef, control_graphdef
    batches = [make_batch(np.random.default_rng([2, k]), k, data=unseen, windows=WINDOWS) for k in range(6)]
    look = Look.load(args.autoencoder, args.features) if args.look else None
    measure = jax.jit(partial(loss, graphdefs=graphdefs, look=look))

    def evaluate(mean: dict[str, nnx.State]) -> dict[str, float]:
        values = [measure(mean, batch, jax.random.key(k)) for k, batch in enumerate(batches)]
        return {
            "heldout_loss": float(np.mean([float(value) for value, _ in values])),
            **{f"heldout_{name}": float(np.mean([float(more[name]) for _, more in values])) for name in values[0][1]},
        }

    mean = training.train(
        partial(loss, graphdefs=graphdefs, look=look),
        {"transformer": transformer, "controlnet": controlnet},
        partial(make_batch, data=data, windows=WHOLE if args.whole else WINDOWS),
        training.TrainConfig.of(args, save_every=240.0, weight_decay=1e-2, adam=ADAM),
        args.workdir,
        evaluate=evaluate,
    )
    folders = Path(args.out), Path(args.out).with_name(CONTROLNET)
    for name, graph, config, folder in zip(("transformer", "controlnet"), graphdefs, configs, folders, strict=True):
        checkpoints.save_model(folder, nnx.merge(graph, mean[name]), config, dtype=np.float16)


if __name__ == "__main__":
    commands.run(main)
