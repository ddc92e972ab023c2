"""The run's folder: who may work in it, where it can lie, and what becomes of a damaged run.json."""

import errno
import fcntl
import json
import logging
import os

import pytest

from reangle_jax import measure
from reangle_jax.errors import InputError
from reangle_jax.run import Ledger
from tests.run.chain import ALL, make_settings


def test_one_process_at_a_time(tmp_path):
    settings = make_settings(tmp_path)
    with (
        Ledger.opened(tmp_path / "run", settings),
        pytest.raises(InputError, match=r"--workdir .*run is in use by another process"),
        Ledger.opened(tmp_path / "run", settings),
    ):
        pass
    with Ledger.opened(tmp_path / "run", settings):
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
        Ledger.opened(tmp_path / place, make_settings(tmp_path)),
    ):
        pass


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
            ledger = Ledger(root, settings)
            for stage in chain.stages():
                for verdict in ledger.survey(stage):
                    if (measured := ledger.measured(stage, verdict.unit)) is not None:
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
        Ledger.opened(tmp_path / "run", make_settings(tmp_path)),
    ):
        pass
