"""The share of a TPU's peak that the attention kernel's own schedule reaches, by the compiler, without a TPU.

    pip install "libtpu==0.0.42.*"      # beside jax 0.10.2
    python benchmarks/splash_schedule.py --target v5e:1x1
    python benchmarks/splash_schedule.py --target v6e:1x1 --forward 512,3584,512 --heads 6

Compiles attention over 17,776 tokens, in heads of 64 channels, and its gradient for one chip, has the compiler write
down the instructions of both kernels, and counts those of one block of logits: what runs for every block, and its part
of what runs once for a row of blocks. An instruction takes a cycle; waiting for memory comes on top. One JSON line for
each kernel, with the blocks that it has: the largest that divide the tokens and are no larger than those asked for.
`benchmarks/compiled.py` takes its shares from here, but for v5p's gradient: that loop has a sixth part, which is not
read, and v5e's share stands for it, of whose cores a v5p has two.
"""

import argparse
import functools
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, too

from reangle_jax import commands, stopping
from reangle_jax.errors import InputError

TOKENS, CHANNELS = 17776, 64
LOGITS = 2**22  # of one product: 16 MiB in float32; the compiler takes hours over what does not fit on the chip
# Multiplications and additions of a cycle, of one core: v5p has two like v5e's.
PER_CYCLE = {"v5": 131072, "v6": 524288}
PRODUCTS = {"fwd": 2, "dkv": 5}


def cycles(schedule: str, blocks: int) -> float:
    """Cycles of one block of logits, on the mean of a row.

    Args:
        schedule: the kernel's instructions in the compiler's words. Its loop is begun, computes a block, and is ended;
            the first and last are skipped but at a row's ends.
        blocks: of a row.

    Raises:
        InputError: the loop has other parts.
    """
    parts = [int(at, 16) for at in re.findall(r"^ *(0x[0-9a-f]+) +(?:LB|PF)\b", schedule, re.MULTILINE)]
    if len(parts) != 5:
        words = "use other --forward and --backward, or libtpu 0.0.42"
        raise InputError(f"the kernel's loop has {len(parts)} parts where five are known: {words}")
    begin, block, end, step, last = parts
    return (block - begin + step - end) / blocks + (end - block) + (last - step)


def compile_kernels(target: str, heads: int, folder: str) -> None:
    """Has the kernels' schedules written to a folder.

    Raises:
        InputError: the TPU compiler is not installed, or the blocks do not fit the chip's memory.
    """
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final.*"
    )
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from benchmarks import targets
    from reangle_jax.nn.splash import splash

    place = SingleDeviceSharding(targets.find(target).devices[0])
    x = jax.ShapeDtypeStruct((1, TOKENS, heads, CHANNELS), jnp.bfloat16, sharding=place)
    attend = functools.partial(splash, scale=CHANNELS**-0.5, saved="attention")
    step = jax.jit(jax.grad(lambda q, k, v: attend(q, k, v).astype(jnp.float32).sum(), (0, 1, 2)))
    try:
        lowered = step.trace(x, x, x).lower(lowering_platforms=("tpu",))
        with stopping.at_once():
            lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).splitlines()[0][:200]
        raise InputError(
            f"--forward or --backward: use smaller blocks, these do not fit --target={target}: {said}"
        ) from None


def blocks(text: str) -> Any:
    """The blocks of a flag: three multiples of 128, as ``512,3584,512``."""
    from reangle_jax.nn import splash as kernel

    sizes = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
    if len(sizes) != 3 or not all(size and size % kernel.LANES == 0 for size in sizes):
        words = f"it must be three multiples of {kernel.LANES}, as 512,3584,512: queries,keys,keys of one product"
        raise argparse.ArgumentTypeError(f"{text} is not possible: {words}")
    found = kernel.Blocks(*sizes)
    if found.q * found.compute > LOGITS:
        words = f"queries times keys of one product must be {LOGITS} at most: use smaller blocks"
        raise argparse.ArgumentTypeError(f"{text} is not possible: {words}")
    return found


def main() -> int:
    """Compiles, counts, prints."""
    from reangle_jax.nn import splash as kernel

    parser = commands.parser(__doc__)
    parser.add_argument("--target", default="v5e:1x1", choices=("v5e:1x1", "v5p:1x1x1", "v6e:1x1"))
    parser.add_argument("--heads", type=commands.positive, default=6, help="of a device")
    parser.add_argument("--forward", type=blocks, default=kernel.FORWARD, help="queries,keys,keys of one product")
    parser.add_argument("--backward", type=blocks, default=kernel.BACKWARD, help="the same of the gradient")
    args = parser.parse_args()
    kernel.FORWARD, kernel.BACKWARD = args.forward, args.backward
    with tempfile.TemporaryDirectory() as folder:
        compile_kernels(args.target, args.heads, folder)
        length = kernel.padded_length(TOKENS)
        for name, asked in (("fwd", args.forward), ("dkv", args.backward)):
            most = kernel.fitting(asked, length, length)
            (path,) = Path(folder).glob(f"*splash*{name}*[0-9]-final_bundles.txt")
            row = length // (most.kv if name == "fwd" else most.q)  # the gradient goes down the queries
            mean = cycles(path.read_text(), row)
            share = PRODUCTS[name] * 2 * most.q * most.kv * CHANNELS / mean / PER_CYCLE[args.target[:2]]
            figures = {"target": args.target, "kernel": name, "blocks": most}
            print(json.dumps(figures | {"cycles": round(mean), "share": round(share, 3)}))
    return 0


if __name__ == "__main__":
    commands.run(main, stopped="it begins anew")
