"""What full-size programs are compiled for: topologies of TPUs and NVIDIA GPUs, none of which need be there."""

import os
import re
from typing import Any, NamedTuple

from jax.experimental import topologies

from reangle_jax.errors import InputError

# The mesh of each topology; of several slices, ``data`` goes over them.
MESHES = {
    "v5e:1x1": "u:1",
    "v5e:2x2": "u:4",
    "v5e:2x4": "u:8",
    "v5e:4x4": "u:16",
    "v5e:8x8": "data:4,u:16",
    "v6e:1x1": "u:1",
    "v6e:2x4": "u:8",
    "v6e:8x8": "data:8,u:8",
    "v5p:1x1x1": "u:1",
    "v5p:2x2x1": "u:4",
    "v5p:4x4x4": "data:16,u:4",
    "h100:1": "u:1",
    "h100:8": "u:8",
    "rtx4090:1": "u:1",
}
# What the compilers look for on this machine and on the network, before they are loaded.
for _name, _value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}.items():
    os.environ.setdefault(_name, _value)
_HOST = 8  # GPUs that one host has at most
# Of its memory, what a run takes with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 (docs: full_size); the driver has the rest.
_TAKEN = 0.95


class Target(NamedTuple):
    """Devices that programs are compiled for.

    Attributes:
        devices: as jax describes them.
        platform: ``tpu`` or ``gpu``, as `reangle_jax.nn.attention.compiling_for` takes it.
        memory: bytes of each that a program may take, where the compiler does not see to it itself; or None.
    """

    devices: list[Any]
    platform: str
    memory: float | None


class Gpu(NamedTuple):
    """A GPU by NVIDIA's data sheet and the table of compute capabilities in the CUDA programming guide.

    Attributes:
        kind: its name.
        memory: bytes that CUDA finds.
        bandwidth: bytes a second.
        capability: of its architecture.
        cores: streaming multiprocessors.
        threads: of one of them.
        shared: KiB of shared memory that one of them has; a block may have one less.
        cache: MiB of the second level.
        clock: GHz, at most.
    """

    kind: str
    memory: float
    bandwidth: float
    capability: str
    cores: int
    threads: int
    shared: int
    cache: int
    clock: float

    def description(self) -> str:
        """As XLA's ``GpuTargetConfigProto``, in text."""
        facts = {
            "core_count": self.cores,
            "fpus_per_core": 128,
            "threads_per_warp": 32,
            "threads_per_block_limit": 1024,
            "threads_per_core_limit": self.threads,
            "registers_per_block_limit": 2**16,
            "registers_per_core_limit": 2**16,
            "shared_memory_per_core": self.shared << 10,
            "shared_memory_per_block": 48 << 10,
            "shared_memory_per_block_optin": self.shared - 1 << 10,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "l2_cache_size": self.cache << 20,
            "clock_rate_ghz": self.clock,
            "memory_bandwidth": int(self.bandwidth),
            "device_memory_size": int(self.memory),
        }
        told = " ".join(f"{name}: {value}" for name, value in facts.items())
        return (
            f"gpu_device_info {{ {told} cuda_compute_capability {{ {self.capability} }} }} "
            f'platform_name: "CUDA" device_description_str: "{self.kind}" '
            "dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 9 }"
        )


_HOPPER = "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES"
_GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", 79.2 * 2**30, 3.35e12, _HOPPER, 132, 2048, 228, 50, 1.98),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 23.6 * 2**30, 1.008e12, "major: 8 minor: 9", 128, 1536, 100, 72, 2.52),
}


def find(name: str, slices: int = 1) -> Target:
    """Describes a target.

    Args:
        name: a topology, such as ``v5e:2x4``, or a GPU and how many of them on one host: ``h100:8``.
        slices: how many of that topology.

    Raises:
        InputError: there is no such target, or what compiles for it is not installed.
    """
    gpu = re.fullmatch(rf"({'|'.join(_GPUS)}):(\d+)", name)
    if gpu:
        if slices > 1 or not 1 <= int(gpu[2]) <= _HOST:
            raise InputError(f"--target={name}: a host has 1 to {_HOST} GPUs, and --slices are of TPUs")
        return Target(_described(_GPUS[gpu[1]], int(gpu[2])), "gpu", _TAKEN * _GPUS[gpu[1]].memory)
    if not re.fullmatch(r"v\d+\w*:\d+(x\d+){1,2}", name):
        raise InputError(f"--target={name} is none of {', '.join(MESHES)}, ...")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if "1x1" in name.replace("2x2x1", ""):
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except RuntimeError as error:
        if "not installed" in str(error):
            raise InputError(f'--target={name} needs the TPU compiler: pip install "libtpu==0.0.42.*"') from None
        raise InputError(
            f"--target={name} is none of {', '.join(MESHES)}, ...: {str(error).splitlines()[0][:200]}"
        ) from None
    return Target(devices, "tpu", None)


def _described(gpu: Gpu, count: int) -> list[Any]:
    options = {"target_config": gpu.description(), "topology": f"1x1x{count}"}
    try:
        return topologies.get_topology_desc(platform="cuda", topology_name="", **options).devices
    except NotImplementedError:
        raise InputError('--target: GPUs need the CUDA plugin, no GPU: pip install "jax[cuda12]==0.10.2"') from None
