import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from reangle_jax import config, measure
from reangle_jax.data import files
from reangle_jax.errors import InputError
from reangle_jax.run import Run, Stage, Unit, view_file
from reangle_jax.stopping import Stop, Stopped


def make_settings(tmp_path, **changes):
    video = tmp_path / "clip.mp4"
    if not video.exists():
        video.write_bytes(b"the clip")
    values = config.get_default().to_dict() | {"video": str(video), "views": ("left:10", "up:8")}
    for key, value in changes.items():
        group, _, leaf = key.rpartition("__")
        (values[group] if group else values)[leaf] = value
    return config.parse(values)


@dataclasses.dataclass
class Chain:
    """read -> tune -> make (one unit a view): a small copy of the real dependencies; `calls` says what ran."""

    calls: list

    def stages(self):
        def read(settings, run):
            self.calls.append("read")
            run.save_bytes("input/frames.npz", f"frames {settings.start} {settings.seed // 100}".encode())

        def tune(settings, run):
            self.calls.append("tune")
            with run.save_folder("lora") as folder:
                (folder / "lora.safetensors").write_text(f"{settings.finetune.steps} {settings.seed}")

        def make(settings, run):
            for unit in run.todo:
                self.calls.append(f"make {unit.view}")
                run.save_bytes(unit.outputs[0], f"{unit.view} {settings.sample.steps} {settings.seed}".encode())
                run.finish(unit)

        one = (Unit(settings=("start", "seed"), external=("video",), outputs=("input/frames.npz",)),)
        two = (Unit(settings=("finetune", "seed"), inputs=("input/frames.npz",), outputs=("lora",)),)

        def views(settings):
            inputs = ("lora/lora.safetensors",)
            return tuple(
                Unit(v, settings=("sample", "seed"), inputs=inputs, outputs=(view_file(v, "frames.npz"),), view=v)
                for v in settings.views
            )

        return [
            Stage("read", 1, lambda settings: one, read),
            Stage("tune", 1, lambda settings: two, tune),
            Stage("make", 1, views, make),
        ]

    def go(self, root, settings):
        self.calls.clear()
        with Run.opened(root, settings) as run:
            for stage in self.stages():
                run.run_stage(stage)
        return list(self.calls)


@pytest.fixture
def chain():
    return Chain([])


ALL = ["read", "tune", "make left:10", "make up:8"]


def test_the_same_again_does_nothing(tmp_path, chain, caplog):
    caplog.set_level(logging.INFO)
    assert chain.go(tmp_path / "run", make_settings(tmp_path)) == ALL
    caplog.clear()
    assert chain.go(tmp_path / "run", make_settings(tmp_path)) == []
    assert [r.getMessage() for r in caplog.records] == [
        "skip read: done",
        "skip tune: done",
        "skip make/left_10: done",
        "skip make/up_8: done",
    ]


@pytest.mark.parametrize(
    ("changes", "redone", "why"),
    [
        ({"caption": "new"}, [], None),
        ({"sample__steps": 7}, ALL[2:], "redo make/left_10: config.sample.steps changed from 40 to 7"),
        ({"finetune__steps": 7}, ALL[1:], "redo tune: config.finetune.steps changed from 400 to 7"),
        ({"start": 7}, ALL[:1] + ALL[1:2], "redo tune: input/frames.npz changed"),
        ({"seed": 1}, ALL, "redo read: config.seed changed from 0 to 1"),
        ({"views": ("left:10", "in:0.1")}, ["make in:0.1"], "do make/in_0_1: not done yet"),
        ({"views": ("up:8",)}, [], None),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it(tmp_path, chain, caplog, changes, redone, why):
    """`start` changes the frames, so tuning is redone; its adapters come out equal, so the views are kept."""
    caplog.set_level(logging.INFO)
    chain.go(tmp_path / "run", make_settings(tmp_path))
    caplog.clear()
    assert chain.go(tmp_path / "run", make_settings(tmp_path, **changes)) == redone
    if why:
        assert why in [r.getMessage() for r in caplog.records]
    assert chain.go(tmp_path / "run", make_settings(tmp_path, **changes)) == []


@pytest.mark.parametrize(
    ("path", "redone"),
    [
        ("input/frames.npz", ["read"]),  # equal again, so nothing follows
        ("lora/lora.safetensors", ["tune"]),
        ("views/left_10/frames.npz", ["make left:10"]),
    ],
)
@pytest.mark.parametrize("damage", ["remove", "corrupt", "truncate"])
def test_a_missing_or_damaged_output_is_redone(tmp_path, chain, caplog, path, redone, damage):
    caplog.set_level(logging.INFO)
    chain.go(tmp_path / "run", make_settings(tmp_path))
    file = tmp_path / "run" / path
    whole = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(whole[:-1] if damage == "truncate" else whole[:-1] + b"#")
    assert chain.go(tmp_path / "run", make_settings(tmp_path)) == redone
    assert file.read_bytes() == whole
    if damage == "corrupt":
        assert any("is damaged or edited" in r.getMessage() for r in caplog.records)


def test_the_video_counts_by_content(tmp_path, chain):
    settings = make_settings(tmp_path)
    chain.go(tmp_path / "run", settings)
    (tmp_path / "clip.mp4").rename(tmp_path / "moved.mp4")
    assert chain.go(tmp_path / "run", make_settings(tmp_path, video=str(tmp_path / "moved.mp4"))) == []
    (tmp_path / "moved.mp4").write_bytes(b"another")
    assert chain.go(tmp_path / "run", make_settings(tmp_path, video=str(tmp_path / "moved.mp4"))) == ["read"]


def test_a_stages_new_version_redoes_it(tmp_path, chain):
    settings = make_settings(tmp_path)
    chain.go(tmp_path / "run", settings)
    with Run.opened(tmp_path / "run", settings) as run:
        newer = dataclasses.replace(chain.stages()[1], version=2)
        assert run.reasons(newer, newer.units(settings)[0]) == ["tune's version changed"]


def test_weights_count_by_content(tmp_path):
    weights = tmp_path / "weights" / "vae"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    settings = make_settings(tmp_path, weights=str(tmp_path / "weights"))
    stage = Stage("s", 1, lambda _: (Unit(weights=("vae",), outputs=("o",)),), lambda _, run: run.save_bytes("o", b""))
    with Run.opened(tmp_path / "run", settings) as run:
        assert run.run_stage(stage)
        assert not run.run_stage(stage)
        (weights / "model.safetensors").write_bytes(b"1")
        assert run.reasons(stage, stage.units(settings)[0]) == ["the weights of vae changed"]


@pytest.mark.parametrize("what", ["input", "external", "weights"])
def test_what_is_replaced_while_it_is_worked_on_is_noticed(tmp_path, what):
    """Not even a stage that reads first and is overtaken later may record what it did not read."""
    weights = tmp_path / "weights" / "vae"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(b"old")
    settings = make_settings(tmp_path, weights=str(tmp_path / "weights"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/in").write_bytes(b"old")
    place = {"input": tmp_path / "run/in", "external": tmp_path / "clip.mp4", "weights": weights / "model.safetensors"}

    def work(settings, run):
        run.save_bytes("out", b"made of the old")
        files.atomic_write_bytes(place[what], b"new")

    unit = Unit(inputs=("in",), external=("video",), weights=("vae",), outputs=("out",))
    stage = Stage("s", 1, lambda _: (unit,), work)
    with Run.opened(tmp_path / "run", settings) as run:
        run.run_stage(stage)
        says = {"input": "in", "external": "the content of config.video", "weights": "the weights of vae"}
        assert run.reasons(stage, unit) == [f"{says[what]} changed"]
    with Run.opened(tmp_path / "run", settings) as run:
        assert run.reasons(stage, unit) == [f"{says[what]} changed"]
        run.run_stage(stage)
    place[what].write_bytes(b"new")  # what the second start read
    with Run.opened(tmp_path / "run", settings) as run:
        assert run.reasons(stage, unit) == []


def test_record(tmp_path, chain):
    settings = make_settings(tmp_path)
    chain.go(tmp_path / "run", settings)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"] == json.loads(json.dumps(config.flatten(settings)))
    assert set(record["versions"]) >= {"python", "jax", "flax", "reangle_jax"}
    assert record["devices"]["platform"] == "cpu"
    assert record["devices"]["count"] == 8
    assert list(record["stages"]) == ["read", "tune", "make/left_10", "make/up_8"]
    for entry in record["stages"].values():
        assert entry["seconds"] >= 0
        assert entry["peak_host_bytes"] > 10 << 20
        assert entry["peak_device_bytes"] is None  # a CPU does not tell
        for path, found in entry["outputs"].items():
            assert files.hash_path(tmp_path / "run" / path) == found
    assert (
        record["stages"]["tune"]["depends"]["input/frames.npz"]
        == record["stages"]["read"]["outputs"]["input/frames.npz"]
    )


@pytest.mark.parametrize(
    "text", ['{"format": 1, "sta', "", "[]", "7", "null", "[" * 100_000, "\x00", '"\\ud800"', "9" * 5000]
)
def test_a_damaged_record_means_starting_over(tmp_path, chain, text):
    settings = make_settings(tmp_path)
    chain.go(tmp_path / "run", settings)
    (tmp_path / "run" / "run.json").write_text(text)
    assert chain.go(tmp_path / "run", settings) == ALL


def places(value, path=()):
    """The path of every value in a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def test_a_record_damaged_by_hand_in_any_place_and_way(tmp_path, chain, monkeypatch):
    """Nothing is raised, by a start or by the plan; the end is a record as good as new."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of starts
    settings = make_settings(tmp_path)
    root = tmp_path / "run"
    chain.go(root, settings)
    whole = (root / "run.json").read_text()
    spoilt = ("null", "true", "1", "-1e999", "NaN", '"x"', "[]", "{}", '[{"a": [1]}]', "1" + "0" * 400)
    chosen = [place for place in places(json.loads(whole)) if place[:1] in ((), ("stages",)) or len(place) == 1]
    chosen = [place for place in chosen if place[1:2] in ((), ("tune",))]
    for number, place in enumerate(chosen):
        record = json.loads(whole)
        mark = "the damaged value"
        if place:
            parent = record
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = mark
        else:
            record = mark
        for value in spoilt[number % 2 :: 2]:
            (root / "run.json").write_text(json.dumps(record).replace(json.dumps(mark), value))
            run = Run(root, settings)
            for stage in chain.stages():
                for unit in stage.units(settings):
                    run.reasons(stage, unit)
                    if (measured := run.measured(stage, unit)) is not None:
                        assert measure.human_seconds(measured["seconds"])
                        assert measure.human_bytes(measure.peak_bytes(measured))
            chain.go(root, settings)
            assert chain.go(root, settings) == []
    assert json.loads((root / "run.json").read_text()).keys() | {"devices"} == json.loads(whole).keys()


def test_a_record_that_cannot_be_read(tmp_path):
    (tmp_path / "run/run.json").mkdir(parents=True)
    with (
        pytest.raises(
            InputError, match=r"--workdir .*run: its run.json cannot be read \(Is a directory\): move it away"
        ),
        Run.opened(tmp_path / "run", make_settings(tmp_path)),
    ):
        pass


def test_failing_midway_keeps_the_finished_views(tmp_path, chain):
    settings = make_settings(tmp_path)
    stages = chain.stages()

    def make(settings, run):
        run.save_bytes(run.todo[0].outputs[0], b"x")
        run.finish(run.todo[0])
        raise RuntimeError("broken")

    def go():
        with Run.opened(tmp_path / "run", settings) as run:
            for stage in [*stages[:2], dataclasses.replace(stages[2], run=make)]:
                run.run_stage(stage)

    with pytest.raises(RuntimeError, match="broken"):
        go()
    assert chain.go(tmp_path / "run", settings) == ["make up:8"]


def test_a_stage_that_dies_while_redoing_counts_as_not_done(tmp_path, chain):
    """The old outputs are still there, from the old settings: they must not be taken for the new ones, nor kept."""
    chain.go(tmp_path / "run", make_settings(tmp_path))
    changed = make_settings(tmp_path, finetune__steps=7)

    def die(settings, run):
        raise KeyboardInterrupt

    def go():
        with Run.opened(tmp_path / "run", changed) as run:
            run.run_stage(dataclasses.replace(chain.stages()[1], run=die))

    with pytest.raises(KeyboardInterrupt):
        go()
    assert chain.go(tmp_path / "run", make_settings(tmp_path))[0] == "tune"


def test_a_stage_must_write_what_it_promised(tmp_path):
    settings = make_settings(tmp_path)
    stage = Stage("lazy", 1, lambda _: (Unit(outputs=("never.txt",)),), lambda settings, run: None)
    with (
        Run.opened(tmp_path / "run", settings) as run,
        pytest.raises(RuntimeError, match=r"lazy ended without writing never"),
    ):
        run.run_stage(stage)


def test_a_stage_cannot_name_a_setting_that_does_not_exist(tmp_path):
    stage = Stage("s", 1, lambda _: (Unit(settings=("finetune.stepz",)),), lambda settings, run: None)
    with Run.opened(tmp_path / "run", make_settings(tmp_path)) as run, pytest.raises(KeyError, match="stepz"):
        run.run_stage(stage)


def test_scratch_lives_as_long_as_its_fingerprint(tmp_path):
    seen = []

    def work(settings, run):
        folder = run.scratch(run.todo[0])
        seen.append(sorted(os.listdir(folder)))
        (folder / "step3").write_text("state")
        if settings.seed < 10:
            raise Stopped(signal.SIGTERM)
        run.save_bytes("out", b"")

    stage = Stage("s", 1, lambda _: (Unit(settings=("seed",), outputs=("out",)),), work)
    for seed in (0, 0, 1, 10):
        try:
            with Run.opened(tmp_path / "run", make_settings(tmp_path, seed=seed)) as run:
                run.run_stage(stage)
        except Stopped:
            pass
    assert seen == [[], ["step3"], [], []]
    assert list((tmp_path / "run" / ".scratch").rglob("step3")) == []


def test_one_process_at_a_time(tmp_path):
    settings = make_settings(tmp_path)
    with (
        Run.opened(tmp_path / "run", settings),
        pytest.raises(InputError, match=r"--workdir .*run is in use by another run"),
        Run.opened(tmp_path / "run", settings),
    ):
        pass
    with Run.opened(tmp_path / "run", settings):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worked_on_with_a_warning(tmp_path, chain, monkeypatch, caplog, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert chain.go(tmp_path / "run", make_settings(tmp_path)) == ALL
    warning = (
        f"run/.lock cannot be locked ({os.strerror(number)}): see to it that no other process works in this folder"
    )
    assert any(warning in r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)


def test_leftovers_of_a_killed_run_are_cleared(tmp_path, chain):
    settings = make_settings(tmp_path)
    chain.go(tmp_path / "run", settings)
    places = [tmp_path / "run", tmp_path / "run" / "input", tmp_path / "run" / "views" / "left_10"]
    for place in places:
        (place / ".x.npz.99.tmp").write_text("half")
    assert chain.go(tmp_path / "run", settings) == []
    assert list((tmp_path / "run").rglob("*.tmp")) == []


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file", "file is no folder"),
        ("file/run", "file is no folder"),
        ("/proc/reangle", "No such file or directory"),
        ("link", "link is a link to gone, which does not exist"),
        ("link/run", "link is a link to gone, which does not exist"),
    ],
)
def test_workdir_that_cannot_be_written(tmp_path, place, why):
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "link").symlink_to("gone")
    with (
        pytest.raises(InputError, match=rf"--workdir .* cannot be written \(.*{why}\): choose another folder"),
        Run.opened(tmp_path / place, make_settings(tmp_path)),
    ):
        pass


def test_keys_depend_on_seed_and_name_alone(tmp_path):
    import jax

    def draw(seed, *names):
        return float(jax.random.uniform(Run(tmp_path, make_settings(tmp_path, seed=seed)).key(*names)))

    assert draw(0, "generate", "left:10") == draw(0, "generate", "left:10")
    values = {draw(0), draw(1), draw(0, "a"), draw(0, "b"), draw(0, "a", "b"), draw(0, "b", "a")}
    assert len(values) == 6


class TestStopping:
    def send(self, signum):
        os.kill(os.getpid(), signum)

    @pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_stops_at_once(self, signum, code):
        with Stop().installed(), pytest.raises(Stopped) as caught:
            self.send(signum)
        assert caught.value.exit_code == code

    def test_work_worth_saving_is_saved_first(self):
        done = []
        stop = Stop()

        def work():
            with stop.installed(), stop.at_safe_points() as held:
                for step in range(5):
                    if step == 2:
                        self.send(signal.SIGTERM)
                    done.append(step)
                    if held.requested:
                        done.append("saved")
                        held.now()

        with pytest.raises(Stopped):
            work()
        assert done == [0, 1, 2, "saved"]

    def test_a_second_signal_does_not_wait(self):
        stop = Stop()

        def work():
            with stop.installed(), stop.at_safe_points():
                self.send(signal.SIGTERM)
                self.send(signal.SIGTERM)
                raise AssertionError

        with pytest.raises(Stopped):
            work()

    def test_the_end_of_the_block_is_a_safe_point(self):
        stop = Stop()

        def work():
            with stop.installed(), stop.at_safe_points():
                self.send(signal.SIGINT)

        with pytest.raises(Stopped):
            work()

    def test_handlers_are_put_back(self):
        before = signal.getsignal(signal.SIGTERM)
        with Stop().installed():
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before


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
        def work(settings, run):
            for unit, count in zip(run.todo, (3 << 30, 1 << 30), strict=True):
                device(count)
                run.save_bytes(unit.outputs[0], b"")
                time.sleep(0.05)
                device(0)
                run.finish(unit)

        stage = Stage("s", 1, lambda _: tuple(Unit(name, outputs=(name,)) for name in "ab"), work)
        with Run.opened(tmp_path / "run", make_settings(tmp_path)) as run:
            run.run_stage(stage)
            assert [measure.peak_bytes(run.record["stages"][f"s/{name}"]) for name in "ab"] == [3 << 30, 1 << 30]

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
