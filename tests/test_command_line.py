import textwrap

import pytest

from reangle_jax import command_line
from reangle_jax.errors import InputError

GOOD = """
from reangle_jax.config import get_default
def get_config():
    c = get_default()
    c.video = "clip.mp4"
    return c
"""


@pytest.fixture
def write(tmp_path):
    def write(content=GOOD):
        path = tmp_path / "config.py"
        path.write_text(textwrap.dedent(content))
        return str(path)

    return write


def parse(*arguments):
    return command_line.parse(["main", *arguments])


def test_file_and_changes_in_any_order_and_spelling(write):
    command = parse(
        "--config.seed", "5", "--config.views=left:10, up:5+in:0.1", "--workdir", "run", "--config", write(),
        "--config.finetune.betas=0.8,0.9", "--config.infill", "--noconfig.finetune.masked", "--config.caption=a, b",
        "--plan",
    )  # fmt: skip
    c = command.config
    assert (c.seed, c.views, c.infill, c.finetune.masked, c.caption) == (
        5,
        ("left:10", "up:5+in:0.1"),
        True,
        False,
        "a, b",
    )
    assert c.finetune.betas == (0.8, 0.9)
    assert c.video == "clip.mp4"
    assert (command.workdir, command.plan, command.preview) == ("run", True, False)


def test_a_tilde_opens_the_home_and_addresses_are_refused(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write()
    assert parse("--config=~/config.py", "--workdir=~/runs/a").workdir == f"{tmp_path}/runs/a"
    assert parse("--config", "~/config.py", "--workdir", "~").workdir == str(tmp_path)
    with pytest.raises(InputError, match=r"^--workdir: gs://bucket/run is an address.* mount the bucket"):
        parse("--config=~/config.py", "--workdir=gs://bucket/run")
    with pytest.raises(InputError, match=r"^--config: s3://bucket/config\.py is an address"):
        parse("--config=s3://bucket/config.py", "--workdir=a")


@pytest.mark.parametrize("spelling", ["left:10", "('left:10',)", '["left:10"]', "'left:10',"])
def test_tuples(write, spelling):
    assert parse(f"--config={write()}", "--workdir=w", f"--config.views={spelling}").config.views == ("left:10",)


def test_config_files_do_not_leak_into_each_other(write):
    parse(f"--config={write()}", "--workdir=w")
    with pytest.raises(InputError, match=r"cannot be used: AttributeError: .*get_config"):
        parse(f"--config={write('x = 1')}", "--workdir=w")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is not set"),
        (["--workdir=w"], "--config is not set"),
        (["--config"], "Missing value for flag --config"),
        (["--config=none.py", "--workdir=w"], "--config: no such file: none.py"),
        (["--config=CONFIG"], "--workdir is not set"),
        (["--config=CONFIG", "--workdir"], "Missing value for flag --workdir"),
        (["--config=CONFIG", "--workdir=w", "--wrkdir=w"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        (["--config=CONFIG", "--workdir=w", "clip.mp4"], "'clip.mp4' is no flag"),
        (["--config=CONFIG", "--workdir=w", "--plan", "--preview"], "exclude each other"),
        (["--config=CONFIG", "--workdir=w", "--plan=3"], "flag --plan=3"),
        (
            ["--config=CONFIG", "--workdir=w", "--config.seeds=3"],
            "config.seeds is not a setting: did you mean config.seed",
        ),
        (["--config=CONFIG", "--workdir=w", "--config.finetune.rnk=3"], "did you mean config.finetune.rank"),
        (["--config=CONFIG", "--workdir=w", "--config.seed.x=3"], "config.seed.x is not a setting"),
        (
            ["--config=CONFIG", "--workdir=w", "--config.seed=a"],
            "config.seed='a' has the wrong type: .* a whole number",
        ),
        (
            ["--config=CONFIG", "--workdir=w", "--config.fps=a"],
            "config.fps='a' has the wrong type: it must be a number",
        ),
        (["--config=CONFIG", "--workdir=w", "--config.infill=a"], "config.infill='a' has .*: it must be true or false"),
        (["--config=CONFIG", "--workdir=w", "--config.finetune=3"], "config.finetune='3' .* key by key"),
    ],
)
def test_mistakes_are_one_clear_line(write, arguments, words):
    path = write()
    with pytest.raises(InputError, match=words) as caught:
        parse(*(argument.replace("CONFIG", path) for argument in arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        (GOOD.replace('"clip.mp4"', "3"), "Could not override field|TypeError"),
        ("def get_config():\n    return 3", "must return reangle_jax.config.get_default()"),
        ("def get_config():\n    return None", "must return"),
        ("def get_config():\n    raise ValueError('first\\nlast')", "last"),
        ("def get_config():\n    return {}['x']", "KeyError"),
    ],
)
def test_bad_config_files_are_one_clear_line(write, content, words):
    with pytest.raises(InputError, match=words) as caught:
        parse(f"--config={write(content)}", "--workdir=w")
    assert "config.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_usage_lists_every_setting():
    text = command_line.usage()
    for line in ("config.finetune.rank=128", "config.views=left:10,", "--preview", "config.evaluate.untuned=False"):
        assert line in text
