"""What is redone, and why; what run.json says of it."""

import dataclasses
import json
import logging
import os
import signal

import pytest

from reangle_jax import config
from reangle_jax.data import files
from reangle_jax.run import External, Ledger, Stage, Unit, run_stage
from reangle_jax.stopping import Stopped
from tests.run.chain import ALL, make_settings


def write_all(settings, folder, work):
    for unit in work:
        for output in unit.outputs:
            files.atomic_write_bytes(folder / output, b"made")


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
    with Ledger.opened(tmp_path / "run", settings) as ledger:
        newer = dataclasses.replace(chain.stages()[1], version=2)
        assert ledger.judge(newer, newer.units(settings)[0]).reasons == ("tune's version changed",)


def test_weights_count_by_content(tmp_path):
    weights = tmp_path / "weights" / "vae"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    settings = make_settings(tmp_path, weights=str(tmp_path / "weights"))
    unit = Unit(weights=(("vae", weights),), outputs=("o",))
    stage = Stage("s", 1, lambda _: (unit,), write_all)
    with Ledger.opened(tmp_path / "run", settings) as ledger:
        assert run_stage(stage, ledger)
        assert not run_stage(stage, ledger)
        (weights / "model.safetensors").write_bytes(b"1")
        assert ledger.judge(stage, unit).reasons == ("the weights of vae changed",)
        other = Unit(settings=("seed",), outputs=("o",))  # another way to the same
        reasons = ledger.judge(stage, other).reasons
        assert reasons == ("no longer made from the weights of vae", "now depends on config.seed=0")


def test_a_unit_made_another_way_is_told_in_a_line_to_read(tmp_path):
    def stage(settings):
        keys = ("seed", "caption") if settings.caption else ("seed", "fps", "start", "height", "width", "num_frames")
        return (Unit(settings=keys, outputs=("o",)),)

    work = Stage("s", 1, stage, write_all)
    with Ledger.opened(tmp_path / "run", make_settings(tmp_path, caption="")) as ledger:
        assert run_stage(work, ledger)
    now = make_settings(tmp_path, caption="a dog", seed=1)
    with Ledger.opened(tmp_path / "run", now) as ledger:
        assert ledger.judge(work, work.units(now)[0]).reasons == (
            "config.seed changed from 0 to 1",
            "config.caption changed from '' to a dog",
            "no longer made from config.fps, config.start, config.height and 2 others",
        )


def test_a_setting_that_an_older_run_did_not_have_is_told_with_its_value(tmp_path):
    """As of a run by an earlier version, which knew no base_dtype."""
    settings = make_settings(tmp_path, base_dtype="int8")
    work = Stage("s", 1, lambda _: (Unit(settings=("seed",), outputs=("o",)),), write_all)
    with Ledger.opened(tmp_path / "run", settings) as ledger:
        assert run_stage(work, ledger)
    path = tmp_path / "run/run.json"
    record = json.loads(path.read_text())
    del record["settings"]["base_dtype"]
    path.write_text(json.dumps(record))
    later = Unit(settings=("seed", "base_dtype", "fps"), inputs=("input/frames.npz",), outputs=("o",))
    files.atomic_write_bytes(tmp_path / "run/input/frames.npz", b"made")
    with Ledger.opened(tmp_path / "run", settings) as ledger:
        assert ledger.judge(work, later).reasons == (
            "now depends on config.base_dtype=int8 (a new setting), config.fps=0.0",
            "now made from input/frames.npz",
        )


def test_a_setting_that_an_older_run_did_not_have_redoes_nothing_at_its_default(tmp_path):
    """Fine-tuning of before there was finetune.moving_weight stays, until it is asked for, then and later."""

    def verdict(**values):
        settings = make_settings(tmp_path, **values)
        with Ledger.opened(tmp_path / "run", settings) as ledger:
            return ledger.judge(work, unit).reasons

    unit = Unit(settings=("seed", "base_dtype"), outputs=("o",))
    work = Stage("s", 1, lambda _: (unit,), write_all)
    with Ledger.opened(tmp_path / "run", make_settings(tmp_path)) as ledger:
        assert run_stage(work, ledger)
    path = tmp_path / "run/run.json"
    record = json.loads(path.read_text())
    del record["settings"]["base_dtype"], record["stages"]["s"]["depends"]["config.base_dtype"], record["added"]
    path.write_text(json.dumps(record))
    for _ in range(2):  # the first opening writes all settings into run.json
        assert verdict() == ()
    for _ in range(2):
        assert verdict(base_dtype="int8") == ("now depends on config.base_dtype=int8 (a new setting)",)
    assert verdict() == ()
    assert verdict(seed=1) == ("config.seed changed from 0 to 1",)
    with Ledger.opened(tmp_path / "run", make_settings(tmp_path, base_dtype="int8")) as ledger:
        assert run_stage(work, ledger)
    assert verdict() == ("config.base_dtype changed from int8 to auto",)


def test_what_is_to_look_at_alone_redoes_nothing(tmp_path):
    def tune(settings, folder, work):
        for _ in work:
            with files.atomic_folder(folder / "lora") as made:
                (made / "adapters").write_bytes(b"learnt")
                (made / "curve.json").write_text("[1, 2]")

    unit = Unit(outputs=("lora",), unjudged=("lora/curve.json",))
    stage = Stage("s", 1, lambda _: (unit,), tune)
    settings, folder = make_settings(tmp_path), tmp_path / "run/lora"
    with Ledger.opened(tmp_path / "run", settings) as ledger:
        # As an earlier version entered it: the whole folder counted.
        before = Stage("s", 1, lambda _: (dataclasses.replace(unit, unjudged=()),), tune)
        assert run_stage(before, ledger)
        assert ledger.judge(stage, unit).reasons == ()
        assert run_stage(dataclasses.replace(stage, version=2), ledger)
    with Ledger.opened(tmp_path / "run", settings) as ledger:
        for damage in (lambda path: path.write_text("[1,"), lambda path: path.unlink()):
            damage(folder / "curve.json")
            assert ledger.judge(dataclasses.replace(stage, version=2), unit).reasons == ()
        (folder / "adapters").write_bytes(b"other")
        assert ledger.judge(dataclasses.replace(stage, version=2), unit).reasons == ("lora is damaged or edited",)


def test_an_empty_setting_is_seen_in_the_reason(tmp_path):
    work = Stage("s", 1, lambda _: (Unit(settings=("caption",), outputs=("o",)),), write_all)
    with Ledger.opened(tmp_path / "run", make_settings(tmp_path, caption="")) as ledger:
        assert run_stage(work, ledger)
    with Ledger.opened(tmp_path / "run", make_settings(tmp_path, caption="a dog")) as ledger:
        (verdict,) = ledger.survey(work, {})
        assert verdict.reasons == ("config.caption changed from '' to a dog",)


def test_what_is_deleted_and_what_comes_back_are_told_as_such(tmp_path):
    settings = make_settings(tmp_path)
    unit = Unit(inputs=("curve", "other"), outputs=("out",))
    stage = Stage("s", 1, lambda _: (unit,), write_all)
    with Ledger.opened(tmp_path / "run", settings) as ledger:
        curve, other = (ledger.root / name for name in unit.inputs)
        curve.write_bytes(b"losses")
        run_stage(stage, ledger)
        curve.unlink()
        other.write_bytes(b"new")
        assert ledger.judge(stage, unit).reasons == ("no longer made from curve", "now made from other")
        curve.write_bytes(b"changed")
        assert ledger.judge(stage, unit).reasons == ("curve changed", "now made from other")


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

    def do(settings, folder, work):
        write_all(settings, folder, work)
        files.atomic_write_bytes(place[what], b"new")

    given = External("config.video", tmp_path / "clip.mp4")
    unit = Unit(inputs=("in",), external=(given,), weights=(("vae", weights),), outputs=("out",))
    stage = Stage("s", 1, lambda _: (unit,), do)
    with Ledger.opened(tmp_path / "run", settings) as ledger:
        run_stage(stage, ledger)
        says = {"input": "in", "external": "the content of config.video", "weights": "the weights of vae"}
        assert ledger.judge(stage, unit).reasons == (f"{says[what]} changed",)
    with Ledger.opened(tmp_path / "run", settings) as ledger:
        assert ledger.judge(stage, unit).reasons == (f"{says[what]} changed",)
        run_stage(stage, ledger)
    place[what].write_bytes(b"new")  # what the second start read
    with Ledger.opened(tmp_path / "run", settings) as ledger:
        assert ledger.judge(stage, unit).reasons == ()


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


def test_failing_midway_keeps_the_finished_views(tmp_path, chain):
    settings = make_settings(tmp_path)
    stages = chain.stages()

    def make(settings, folder, work):
        for unit in work:
            if unit.view == "up:8":
                raise RuntimeError("broken")
            files.atomic_write_bytes(folder / unit.outputs[0], b"x")

    def go():
        with Ledger.opened(tmp_path / "run", settings) as ledger:
            for stage in [*stages[:2], dataclasses.replace(stages[2], run=make)]:
                run_stage(stage, ledger)

    with pytest.raises(RuntimeError, match="broken"):
        go()
    assert chain.go(tmp_path / "run", settings) == ["make up:8"]


def test_a_stage_that_dies_while_redoing_counts_as_not_done(tmp_path, chain):
    """The old outputs are still there, from the old settings: they must not be taken for the new ones, nor kept."""
    chain.go(tmp_path / "run", make_settings(tmp_path))
    changed = make_settings(tmp_path, finetune__steps=7)

    def die(settings, folder, work):
        raise KeyboardInterrupt

    def go():
        with Ledger.opened(tmp_path / "run", changed) as ledger:
            run_stage(dataclasses.replace(chain.stages()[1], run=die), ledger)

    with pytest.raises(KeyboardInterrupt):
        go()
    assert chain.go(tmp_path / "run", make_settings(tmp_path))[0] == "tune"


def test_a_stage_must_write_what_it_promised(tmp_path):
    settings = make_settings(tmp_path)
    for do, words in (
        (lambda *_: None, "left undone: lazy"),
        (lambda _, __, work: list(work), "without writing never.txt"),
    ):
        stage = Stage("lazy", 1, lambda _: (Unit(outputs=("never.txt",)),), do)
        with Ledger.opened(tmp_path / "run", settings) as ledger, pytest.raises(RuntimeError, match=words):
            run_stage(stage, ledger)


def test_a_stage_cannot_name_a_setting_that_does_not_exist(tmp_path):
    stage = Stage("s", 1, lambda _: (Unit(settings=("finetune.stepz",)),), lambda *_: None)
    with Ledger.opened(tmp_path / "run", make_settings(tmp_path)) as ledger, pytest.raises(KeyError, match="stepz"):
        run_stage(stage, ledger)


def test_scratch_lives_as_long_as_its_fingerprint(tmp_path):
    seen = []

    def do(settings, folder, work):
        for unit in work:
            scratch = work.scratch(unit)
            seen.append(sorted(os.listdir(scratch)))
            (scratch / "step3").write_text("state")
            if settings.seed < 10:
                raise Stopped(signal.SIGTERM)
            (folder / "out").touch()

    stage = Stage("s", 1, lambda _: (Unit(settings=("seed",), outputs=("out",)),), do)
    for seed in (0, 0, 1, 10):
        try:
            with Ledger.opened(tmp_path / "run", make_settings(tmp_path, seed=seed)) as ledger:
                run_stage(stage, ledger)
        except Stopped:
            pass
    assert seen == [[], ["step3"], [], []]
    assert list((tmp_path / "run" / ".scratch").rglob("step3")) == []
