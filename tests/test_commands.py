"""Flags of every command: numbers that make no sense are one line that names the flag."""

import argparse
import ast
import importlib
import sys
from pathlib import Path

import pytest

from reangle_jax import commands

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "converters", "launch", "reangle_jax", "training")
POSITIVE, COUNT = "is no whole number from 1 on", "is no whole number from 0 on"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (commands.positive, {"1": 1, "12": 12}, ("0", "-1", "1.5", "few", "", "nan")),
        (commands.count, {"0": 0}, ("-1", "--1")),
        (commands.whole(2, 9), {"2": 2, "9": 9}, ("1", "10")),
        (commands.above_zero, {"0.5": 0.5, "3": 3.0}, ("0", "-1", "nan", "inf", "some")),
        (commands.share, {"0": 0.0, "1": 1.0}, ("-0.1", "1.1", "nan")),
    ],
)
def test_numbers_within_their_bounds_are_taken_and_no_others(kind, good, bad):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{text} is no "):
            kind(text)


def test_no_flag_of_any_command_takes_any_number():
    loose = []
    for file in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if given.get("type") in ("int", "float") and "choices" not in given:
                    loose.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not loose, "of reangle_jax.commands, give positive, count, whole, above_zero or share"


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("benchmarks.splat", ["--frames=0"], f"argument --frames: 0 {POSITIVE}"),
        ("benchmarks.met3r", ["--repeats=-1"], f"argument --repeats: -1 {POSITIVE}"),
        ("benchmarks.met3r", ["--views=2,0"], f"argument --views: 0 {POSITIVE}"),
        ("benchmarks.met3r", ["--size=20"], "--size=20: with --config=tiny it must be a multiple of 8"),
        ("benchmarks.vae_tiles", ["--sizes", "480x0"], "argument --sizes: 480x0 is no HEIGHTxWIDTH"),
        ("benchmarks.ablate_int8", ["--workdir=w", "--steps=0"], f"argument --steps: 0 {POSITIVE}"),
        ("benchmarks.convert", ["--layers", "-3"], f"argument --layers: -3 {POSITIVE}"),
        ("benchmarks.full_size", ["--limit=0"], "argument --limit: 0 is no number above 0"),
        ("benchmarks.stochastic_control", ["--views=v", "--out=o", "--first=24"], "--first=24 leaves none of --scenes"),
        ("training.make_bank", ["--out=o", "--seconds", "-1"], "argument --seconds: -1 is no number above 0"),
        ("training.dataset", ["--out=o", "--clips=0"], f"argument --clips: 0 {POSITIVE}"),
        ("training.holes", ["--out=o", "--pictures=1", "--first=-1"], f"argument --first: -1 {COUNT}"),
        ("training.train_bank", ["depth", "--decay=2"], "argument --decay: 2 is no number from 0 to 1"),
        ("training.train_text", ["--minutes=0"], "argument --minutes: 0 is no number above 0"),
    ],
)
def test_each_command_refuses_them_before_any_work(module, arguments, words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    assert commands.answer(lambda stop: importlib.import_module(module).main()) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"error: {words}")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("reangle_jax.many", ["many", "clips.txt", "--out=o", "--groups=0"], f"argument --groups: 0 {POSITIVE}"),
        ("reangle_jax.export.command", ["run", "--shards=0"], f"argument --shards: 0 {POSITIVE}"),
        ("reangle_jax.scoring.command", ["a", "b", "--size=-8"], f"argument --size: -8 {POSITIVE}"),
        (
            "converters.command",
            ["lora-import", "--source=s", "--out=o", "--alpha=0"],
            "argument --alpha: 0 is no number above 0",
        ),
    ],
)
def test_so_do_those_that_take_a_command_line(module, arguments, words, capfd):
    assert importlib.import_module(module).main(arguments) == 2
    assert capfd.readouterr().err.startswith(f"error: {words} (see --help)\n")


def test_what_cannot_be_written_or_held_is_told_in_one_line(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(commands.stopping, "run", lambda answer: sys.exit(answer()))

    def ended(work):
        with pytest.raises(SystemExit) as caught:
            commands.run(work)
        assert caught.value.code == 2
        return capfd.readouterr().err

    def too_much():
        raise MemoryError("Unable to allocate 7. TiB")

    said = ended(lambda: (tmp_path / "file" / "x").mkdir(parents=True))
    assert said.startswith("error: what this command writes cannot be written (Not a directory: ")
    assert said.endswith("mend that, or give another path\n")
    said = ended(too_much)
    assert said.startswith("error: out of memory: ")
    assert said.endswith("what helps: less at once\n")
    with pytest.raises(KeyError):
        commands.run(lambda: {}["a bug"])
