"""What work takes, and how it is said."""

import contextlib
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from reangle_jax import config, measure
from reangle_jax.run import Ledger, Stage, Unit, run_stage


def test_host_peak_is_measured_per_stage():
    """Run apart: the peak of this process holds whatever other tests did."""
    program = """
    from reangle_jax import measure
    assert measure.reset_host_peak()
    before = measure.host_peak_bytes()
    block = bytearray(200 << 20)
    del block
    assert measure.host_peak_bytes() - before > 150 << 20
    measure.reset_host_peak()
    assert measure.host_peak_bytes() - before < 100 << 20
    """
    if not measure.reset_host_peak():
        pytest.skip("this system cannot reset the peak")
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


class TestMeter:
    @pytest.fixture
    def device(self, monkeypatch):
        """A device that counts as XLA's do: a peak that never falls."""
        held = {"bytes_in_use": 0, "peak_bytes_in_use": 0}

        def hold(count):
            held.update(bytes_in_use=count, peak_bytes_in_use=max(count, held["peak_bytes_in_use"]))

        class Device:
            def memory_stats(self):
                return dict(held)

        import jax

        monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
        monkeypatch.setattr(measure, "SAMPLE_SECONDS", 0.001)
        return hold

    def test_each_piece_of_work_has_its_own_peak(self, device):
        with contextlib.closing(measure.Meter()) as meter:
            device(5 << 30)
            device(0)
            large = meter.read()
            meter.start()
            for count in (1 << 30, 2 << 30, 0):
                device(count)
                time.sleep(0.05)
            small = meter.read()
            meter.start()
            device(6 << 30)
            device(0)
            larger = meter.read()
        assert (large["peak_device_bytes"], larger["peak_device_bytes"]) == (5 << 30, 6 << 30)
        # The process's peak was an earlier unit's: what was held is known from samples alone, and is named so.
        assert (small["peak_device_bytes"], small["sampled_device_bytes"]) == (None, 2 << 30)
        assert measure.peak_bytes(small) == 2 << 30
        assert not [thread for thread in threading.enumerate() if thread.name == "memory"]

    def test_units_are_measured_apart(self, tmp_path, device):
        def do(settings, folder, work):
            for unit, count in zip(work, (3 << 30, 1 << 30), strict=True):
                device(count)
                (folder / unit.name).touch()
                time.sleep(0.05)
                device(0)

        stage = Stage("s", 1, lambda _: tuple(Unit(name, outputs=(name,)) for name in "ab"), do)
        with Ledger.opened(tmp_path / "run", config.parse(config.get_tiny().to_dict() | {"video": "x"})) as ledger:
            run_stage(stage, ledger)
            assert [measure.peak_bytes(ledger.record["stages"][f"s/{name}"]) for name in "ab"] == [3 << 30, 1 << 30]
            assert not run_stage(stage, ledger)
        assert not [thread for thread in threading.enumerate() if thread.name == "memory"]

    def test_a_platform_that_does_not_count(self, monkeypatch):
        class Device:
            def memory_stats(self):
                raise NotImplementedError("memory stats")

        import jax

        monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
        assert measure.device_bytes("bytes_in_use") is None

    def test_a_cpu_tells_nothing(self):
        with contextlib.closing(measure.Meter()) as meter:
            found = meter.read()
        assert found["peak_device_bytes"] is found["sampled_device_bytes"] is None
        assert measure.peak_bytes(found) == found["peak_host_bytes"] > 10 << 20


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (12.4, "12 s"), (65, "1 min 5 s"), (59.6, "1 min 0 s"), (7500, "2 h 5 min"), (280000, "3 d 5 h")],
)
def test_seconds_are_readable(seconds, text):
    assert measure.human_seconds(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (2048, "2 KiB"), (3 << 20, "3 MiB"), (5 << 30, "5.0 GiB")])
def test_bytes_are_readable(count, text):
    assert measure.human_bytes(count) == text
