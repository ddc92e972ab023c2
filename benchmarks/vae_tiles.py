"""Memory of the full-size autoencoder with and without tiles, as XLA's compiler for this device plans it.

Nothing is computed: programs are compiled from shapes alone. One chunk of frames (the largest, nine frames) stands for
the whole clip: chunks run one after the other. Compiling takes minutes on a CPU.

    python benchmarks/vae_tiles.py [--code decode encode] [--sizes 480x720 768x1360]
"""

import argparse
import time

import jax
import jax.numpy as jnp
from flax import nnx

from reangle_jax import commands
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.nn.execution import Execution

FRAMES, LATENTS = 9, 3


def planned(config: VAEConfig, execution: Execution, code: str, height: int, width: int) -> tuple[float, float]:
    """Temporary memory in GiB beside parameters, input and output; and the seconds that compiling took."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: VAE(config, execution=execution, rngs=nnx.Rngs(0))))
    shape = (1, FRAMES, height, width, 3) if code == "encode" else (1, LATENTS, height // 8, width // 8, 16)
    method = VAE.encode if code == "encode" else VAE.decode
    start = time.perf_counter()
    compiled = (
        jax.jit(lambda state, x: method(nnx.merge(graphdef, state), x))
        .lower(state, jax.ShapeDtypeStruct(shape, jnp.float32))
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes / 2**30, time.perf_counter() - start


def size(text: str) -> tuple[int, int]:
    """Rows and columns, as ``480x720``: multiples of 8, what a latent stands for."""
    sides = [int(word) if word.isdecimal() else 0 for word in text.split("x")]
    if len(sides) != 2 or not all(side and side % 8 == 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text} is no HEIGHTxWIDTH, such as 480x720, of multiples of 8")
    return sides[0], sides[1]


def main() -> None:
    """Prints a line for each size and direction."""
    parser = commands.parser(__doc__)
    parser.add_argument("--code", nargs="+", choices=("decode", "encode"), default=["decode", "encode"])
    parser.add_argument("--sizes", type=size, nargs="+", default=[(480, 720), (768, 1360)], help="HxW")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="what is computed in")
    arguments = parser.parse_args()
    config, execution = VAEConfig(), Execution(dtype=arguments.dtype)
    for code in arguments.code:
        for height, width in arguments.sizes:
            tiled, tiled_seconds = planned(config.tiled(), execution, code, height, width)
            whole, whole_seconds = planned(config, execution, code, height, width)
            print(
                f"{code} {height}x{width}: whole {whole:.2f} GiB, in tiles {tiled:.2f} GiB, {whole / tiled:.1f} times "
                f"less (compiled in {whole_seconds:.0f} s and {tiled_seconds:.0f} s, {jax.default_backend()})",
                flush=True,
            )


if __name__ == "__main__":
    commands.run(main, stopped="it begins anew")
