"""A stage whose units depend on each other: each view is painted over what the one before it shows."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reangle_jax import config, plan
from reangle_jax.data import files
from reangle_jax.run import Ledger, Stage, Unit, run_stage

ROOT = Path(__file__).parent.parent.parent
NAMES = ("a", "b", "c")


def output(name):
    return f"views/{name}/painted.txt"


class Painting:
    """a <- b <- c, and d alone. `done` says what was painted, `loaded` how often the network was loaded."""

    def __init__(self, die_in=None):
        self.done, self.loaded, self.die_in = [], 0, die_in

    def units(self, settings):
        chain = [
            Unit(
                name,
                settings=() if k else ("seed", "caption"),
                inputs=(output(NAMES[k - 1]),) if k else (),
                outputs=(output(name),),
            )
            for k, name in enumerate(NAMES)
        ]
        return (*chain, Unit("d", settings=("caption",), outputs=(output("d"),)))

    def paint(self, settings, folder, work):
        self.loaded += 1
        for unit in work:
            before = [(folder / path).read_text() for path in unit.inputs]
            if unit.name == self.die_in:
                raise KeyboardInterrupt
            # What `a` paints changes with every tenth seed alone.
            content = f"{settings.seed // 10} {settings.caption}" if not before else f"{before[0]}>{unit.name}"
            files.atomic_write_bytes(folder / unit.outputs[0], content.encode())
            self.done.append(unit.name)

    @property
    def stage(self):
        return Stage("paint", 1, self.units, self.paint)

    def go(self, root, **changes):
        with Ledger.opened(root, settings(**changes)) as ledger:
            run_stage(self.stage, ledger)
        return self.done


def settings(**changes):
    return config.parse(config.get_tiny().to_dict() | {"video": "v.mp4"} | changes)


def write_all(settings, folder, work):
    for unit in work:
        files.atomic_write_bytes(folder / unit.outputs[0], b"")


def said(caplog):
    return [
        record.getMessage() for record in caplog.records if record.getMessage().startswith(("do ", "redo ", "skip "))
    ]


@pytest.fixture
def root(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="reangle_jax")
    return tmp_path / "run"


def test_each_reads_what_the_one_before_has_painted_and_the_network_is_loaded_once(root, caplog):
    painting = Painting()
    assert painting.go(root) == ["a", "b", "c", "d"]
    assert (root / output("c")).read_text() == "0 >b>c"
    assert painting.loaded == 1
    caplog.clear()
    again = Painting()
    assert again.go(root) == []
    assert again.loaded == 0
    assert said(caplog) == ["skip paint/a: done", "skip paint/b: done", "skip paint/c: done", "skip paint/d: done"]


def test_a_new_first_view_makes_those_after_it_anew(root, caplog):
    Painting().go(root)
    caplog.clear()
    assert Painting().go(root, seed=10) == ["a", "b", "c"]
    assert (root / output("c")).read_text() == "1 >b>c"
    assert [line for line in said(caplog) if "/d:" not in line] == [
        "redo paint/a: config.seed changed from 0 to 10",
        "redo paint/b: views/a/painted.txt changed",
        "redo paint/c: views/b/painted.txt changed",
    ]
    assert Painting().go(root, seed=10) == []


def test_one_that_comes_out_equal_changes_nothing_after_it(root, caplog):
    Painting().go(root)
    caplog.clear()
    assert Painting().go(root, seed=1) == ["a"]
    assert "skip paint/b: done" in said(caplog)
    (root / output("a")).write_text("damaged")
    assert Painting().go(root, seed=1) == ["a"]
    (root / output("b")).unlink()
    assert Painting().go(root, seed=1) == ["b"]


@pytest.mark.parametrize(("place", "kept"), [("a", []), ("b", ["a"]), ("c", ["a", "b"])])
@pytest.mark.parametrize("before", [False, True])
def test_killed_between_them(root, place, kept, before):
    """At the first start, or while everything is made anew: no old output is then taken for a new one."""
    if before:
        Painting().go(root, caption="old")
    with pytest.raises(KeyboardInterrupt):
        Painting(die_in=place).go(root, seed=10)
    painting = Painting()
    expected = [name for name in NAMES if name not in kept] + ["d"]
    assert painting.go(root, seed=10) == expected
    assert (root / output("c")).read_text() == "1 >b>c"
    assert painting.loaded == 1


def test_killed_for_good(root):
    """SIGKILL after the files of b are written and before it is entered."""
    program = f"""if True:
        import os, signal, sys
        sys.path.insert(0, {str(ROOT)!r})
        from reangle_jax.run import work
        from tests.run.test_units_in_order import Painting
        finish = work.Work.finish
        work.Work.finish = lambda self, unit: (
            os.kill(os.getpid(), signal.SIGKILL) if unit.name == "b" else finish(self, unit)
        )
        Painting().go({str(root)!r})
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (root / output("b")).exists()
    assert Painting().go(root) == ["b", "c", "d"]


def test_plan_and_reasons_know_what_waits_for_what(root):
    Painting().go(root)
    ledger = Ledger(root, settings(seed=10))
    verdicts = {verdict.unit.name: verdict for verdict in ledger.survey(Painting().stage)}
    assert verdicts["a"].reasons == ("config.seed changed from 0 to 10",)
    assert (verdicts["b"].reasons, verdicts["b"].waits) == ((), ("views/a/painted.txt of paint/a",))
    assert (verdicts["c"].reasons, verdicts["c"].waits) == ((), ("views/b/painted.txt of paint/b",))
    assert not verdicts["d"].pending
    later = Stage("later", 1, lambda _: (Unit(inputs=("views/c",), outputs=("sum",)),), write_all)
    table = plan.table(ledger, [Painting().stage, later])
    lines = {line.split()[0]: line for line in table.splitlines() if line[:5] in ("paint", "later")}
    assert "config.seed changed from 0 to 10" in lines["paint"]
    waits = "views/a/painted.txt of paint/a, views/b/painted.txt of paint/b"
    assert f"done again if these change: {waits}" in " ".join(table.split())  # however its lines are broken
    with Ledger.opened(root, settings()) as ledger:
        run_stage(later, ledger)
    table = plan.table(Ledger(root, settings(seed=10)), [Painting().stage, later])
    (line,) = (line for line in table.splitlines() if line.startswith("later"))
    assert line.split()[1:3] == ["1", "0"]  # one unit, and nobody knows yet whether it stays
    assert line.endswith("  done again if these change: views/c of paint/c")
    assert "done again" not in plan.table(Ledger(root, settings()), [Painting().stage, later])


def test_a_plan_says_that_its_time_is_the_most_however_its_lines_are_broken(root, monkeypatch):
    Painting().go(root)
    ledger = Ledger(root, settings(seed=10))
    for record in ledger.record["stages"].values():
        record["seconds"] = 5.0
    monkeypatch.setattr(plan, "_WIDTH", 70)
    assert "\nto do: at most about " in plan.table(ledger, [Painting().stage])


def test_a_stage_sees_all_that_may_be_to_do(root):
    """It can prepare for it: embed every prompt at once, count steps."""
    painting, seen = Painting(), []
    painting.go(root)
    painting.done.clear()
    (root / output("b")).unlink()

    def paint(settings, folder, work):
        seen.extend(unit.name for unit in work.todo)
        painting.paint(settings, folder, work)

    with Ledger.opened(root, settings()) as ledger:
        run_stage(Stage("paint", 1, painting.units, paint), ledger)
    assert seen == ["b", "c"]  # c may follow
    assert painting.done == ["b"]  # and does not: b comes out equal


def test_nothing_may_be_left_undone(root):
    stage = Stage("paint", 1, Painting().units, lambda *_: None)
    with (
        Ledger.opened(root, settings()) as ledger,
        pytest.raises(RuntimeError, match="left undone: paint/a, paint/b, paint/c, paint/d"),
    ):
        run_stage(stage, ledger)

    def first_alone(settings, folder, work):
        files.atomic_write_bytes(folder / output("a"), b"")
        work.finish(work.todo[0])

    with (
        Ledger.opened(root, settings()) as ledger,
        pytest.raises(RuntimeError, match="left undone: paint/b, paint/c, paint/d"),
    ):
        run_stage(Stage("paint", 1, Painting().units, first_alone), ledger)


def test_what_lies_in_a_folder_that_is_made_anew_waits_for_it(root):
    """generate reads lora/lora.safetensors, and finetune promises lora/."""
    units = (Unit("make", outputs=("lora",)), Unit("read", inputs=("lora/lora.safetensors",), outputs=("made",)))
    with Ledger.opened(root, settings()) as ledger:
        make, read = ledger.survey(Stage("s", 1, lambda _: units, lambda *_: None))
    assert (make.waits, read.waits) == ((), ("lora/lora.safetensors of s/make",))
