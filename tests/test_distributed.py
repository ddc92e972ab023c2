"""What tells several processes of each other, and what each gets; real processes are in tests/processes."""

import re
import types
from pathlib import Path

import numpy as np
import pytest

from reangle_jax import distributed, mesh
from reangle_jax.config import flatten, from_flat, get_default, parse
from reangle_jax.data import blocks as blocks_of_files
from reangle_jax.errors import InputError

PACKAGE = Path(distributed.__file__).parent
EXPLICIT = {"REANGLE_COORDINATOR": "host:1234", "REANGLE_PROCESSES": "4", "REANGLE_PROCESS": "3"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({**EXPLICIT, "REANGLE_PROCESSES": "1", "REANGLE_PROCESS": "0"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script's own: no step of srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, {}),
    ],
)
def test_who_says_that_there_are_several(environment, expected, monkeypatch):
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])
    assert distributed.options(environment) == expected


def test_explicit_processes():
    assert distributed.options(EXPLICIT) == {
        "coordinator_address": "host:1234", "num_processes": 4, "process_id": 3,
        "cluster_detection_method": "deactivate",
    }  # fmt: skip


def test_hosts_of_a_slice_ask_their_metadata_server(monkeypatch):
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: object())
    assert distributed.options({}) == {}
    assert distributed.options({"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"REANGLE_PROCESS": ""}, "without REANGLE_PROCESS: give all three"),
        ({"REANGLE_COORDINATOR": "host"}, "it must be HOST:PORT"),
        ({"REANGLE_PROCESS": "4"}, "counted from 0"),
        ({"REANGLE_PROCESSES": "two"}, "counted from 0"),
    ],
)
def test_explicit_mistakes(change, words):
    with pytest.raises(InputError, match=words):
        distributed.options({**EXPLICIT, **change})


def test_files_travel_in_blocks_that_do_not_end_with_them(tmp_path, rng):
    sizes = {"a": 3, "b/empty": 0, "b/large": 2 * distributed.BLOCK + 5, "c": distributed.BLOCK - 7}
    (tmp_path / "one/b").mkdir(parents=True)
    for name, size in sizes.items():
        (tmp_path / "one" / name).write_bytes(rng.bytes(size))
    blocks = list(blocks_of_files.read(tmp_path / "one", sizes, distributed.BLOCK))
    assert [len(block) for block in blocks[:-1]] == [distributed.BLOCK] * 3
    blocks_of_files.write(tmp_path / "two", sizes, iter(blocks))
    for name in sizes:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_settings_travel_as_json(tmp_path):
    (tmp_path / "clip.mp4").touch()
    settings = get_default()
    settings.video, settings.loras = str(tmp_path / "clip.mp4"), ()
    settings = parse(settings)
    assert from_flat(flatten(settings)) == settings


TOGETHER = ["stages/finetune.py", "stages/generate.py", "prompts.py"]
TOGETHER += [f"backbones/cogvideox/{name}.py" for name in ("backbone", "lora", "networks", "sampling")]


@pytest.mark.parametrize("name", TOGETHER)
def test_what_processes_run_together_brings_arrays_to_the_host_whole(name):
    """By `mesh.on_host`: of an array whose pieces lie with several processes NumPy sees none."""
    text = (PACKAGE / name).read_text(encoding="utf-8").replace("np.asarray(schedule(number))", "a scalar")
    assert re.findall(r"(?<!j)np\.(?:asarray|array)\(|device_get|__array__", text) == []


class TestMesh:
    """Devices of several processes, of which only the number counts."""

    def devices(self, processes, each, platform="gpu"):
        return [
            types.SimpleNamespace(process_index=p, platform=platform, id=each * p + k)
            for p in range(processes)
            for k in range(each)
        ]

    @pytest.fixture
    def made(self, monkeypatch, unchecked):
        monkeypatch.setattr(mesh, "Mesh", lambda grid, names, **_: np.vectorize(lambda device: device.id)(grid))
        return mesh.make_mesh

    def test_auto_leaves_no_process_without_a_device(self, made):
        assert made("auto", devices=self.devices(2, 4)).shape == (1, 1, 8)
        assert made("auto", batch_size=2, devices=self.devices(2, 4)).shape == (2, 1, 4)
        assert made("auto", batch_size=2, devices=self.devices(2, 4, "cpu")).tolist() == [[[0]], [[4]]]

    def test_each_process_gives_as_many(self, made):
        assert made("data:2,u:2", devices=self.devices(2, 4)).tolist() == [[[0, 1]], [[4, 5]]]

    def test_what_does_not_divide_over_them_is_refused(self, made):
        with pytest.raises(InputError, match="its 3 devices must be a multiple of the 2 processes"):
            made("u:3", devices=self.devices(2, 4))
