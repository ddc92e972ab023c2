"""What each of 1, 2, 4 and 8 devices holds, computes and sends when the small family's work grows with their number.

    python -m benchmarks.weak_scaling
    python -m benchmarks.weak_scaling --programs finetune --devices 1 2 --json

The devices are fakes of this CPU, and nothing is executed: the real steps are compiled, and their programs read. A
video, or a guided view, for each device (``data:N``), where a device's share should stay as it is; and one video over
all of them (``one video``), where it should become smaller. Operations are XLA's count, which takes a loop's body once,
and so are shown as shares of one device's.
"""

import collections
import dataclasses
import json
import os
from typing import Any

import jax

from benchmarks import compiled as of_compiler
from benchmarks.full_size_programs import PROGRAMS, Case
from reangle_jax import commands
from reangle_jax import mesh as meshes
from reangle_jax.backbones.registry import Clip
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae_config import VAEConfig

MIB = 2.0**20
# One video over N devices: the small family's six heads divide by two.
ONE = {1: "u:1", 2: "u:2", 4: "r:2,u:2", 8: "r:4,u:2"}


class Small(Case):
    """The small family's networks at its own size, in place of the full ones."""

    @property
    def transformer(self) -> TransformerConfig:
        """See `Case.transformer`."""
        return dataclasses.replace(TransformerConfig.tiny(), lora_rank=self.rank, lora_alpha=float(self.rank))

    @property
    def vae(self) -> VAEConfig:
        """See `Case.vae`."""
        return VAEConfig.tiny()

    @property
    def clip(self) -> Clip:
        """See `Case.clip`."""
        config, ratio = self.transformer, self.vae.spatial_compression_ratio
        return Clip(config.sample_frames, ratio * config.sample_height, ratio * config.sample_width, "off")


def measure(program: str, devices: int, *, one: bool = False, kind: type[Small] = Small) -> dict[str, Any]:
    """A device's share of one step.

    Args:
        program: of `PROGRAMS`.
        devices: how many.
        one: whether they share one video; else each has its own.
        kind: whose networks.
    """
    text = ONE[devices] if one else f"data:{devices}"
    mesh = meshes.make_mesh(text)
    with meshes.use(mesh):
        compiled = PROGRAMS[program](kind(rank=16, videos=1 if one else devices), mesh).trace().lower().compile()
    memory, sent = compiled.memory_analysis(), collections.Counter()
    for each in of_compiler.collectives(compiled.as_text()):
        sent[each.kind] += each.times * each.size
    return {
        "program": program,
        "devices": devices,
        "mesh": text,
        "arguments_mib": memory.argument_size_in_bytes / MIB,
        "temporaries_mib": memory.temp_size_in_bytes / MIB,
        "operations": compiled.cost_analysis()["flops"],
        "sent_mib": {kind: size / MIB for kind, size in sent.items()},
    }


def main() -> None:
    """Prints the table."""
    parser = commands.parser(__doc__)
    parser.add_argument(
        "--programs", nargs="+", choices=("finetune", "sample", "decode"), default=["finetune", "sample"]
    )
    parser.add_argument("--devices", nargs="+", type=int, choices=tuple(ONE), default=list(ONE))
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row, too")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    # Read when the devices are first asked for.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    print("| program | mesh | arguments | temporaries | operations | sent to a device in a step |")
    print("|---|---|---|---|---|---|")
    for program in args.programs:
        for one in (False, True) if program != "decode" else (True,):
            first = None
            for devices in args.devices:
                row = measure(program, devices, one=one)
                first = first or row["operations"]
                sent = ", ".join(f"{size:.2f} MiB by {kind}s" for kind, size in row["sent_mib"].items())
                print(
                    f"| {program}{', one video' if one else ''} | `{row['mesh']}` | {row['arguments_mib']:.1f} MiB "
                    f"| {row['temporaries_mib']:.1f} MiB | {row['operations'] / first:.2f} | {sent or 'nothing'} |",
                    flush=True,
                )
                if args.json:
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    commands.run(main)
