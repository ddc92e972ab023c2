"""Where compiled programs are kept."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from reangle_jax import compilation_cache
from reangle_jax.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """What `use` told JAX, in place of JAX's own configuration, which is as if nothing were set."""
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    monkeypatch.setattr(compilation_cache, "folder", lambda: told.get("jax_compilation_cache_dir"))
    return told


def test_by_default_in_the_users_cache_folder(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    compilation_cache.use()
    (made,) = (tmp_path / "xdg/reangle_jax").iterdir()
    assert settings == {"jax_compilation_cache_dir": str(made)}
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which does not count, as the standard says
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings.clear()
    compilation_cache.use()
    assert settings == {"jax_compilation_cache_dir": str(tmp_path / "home/.cache/reangle_jax" / made.name)}


def test_jaxs_own_setting_counts(settings):
    settings["jax_compilation_cache_dir"] = "elsewhere"
    compilation_cache.use()
    assert settings == {"jax_compilation_cache_dir": "elsewhere"}


def test_moved_or_turned_off(settings, tmp_path):
    settings["jax_compilation_cache_dir"] = "elsewhere"
    compilation_cache.use(str(tmp_path / "mine"))
    assert Path(settings["jax_compilation_cache_dir"]).parent == tmp_path / "mine"
    compilation_cache.use("off")
    assert settings["jax_enable_compilation_cache"] is False


def test_a_folder_that_cannot_be_written(settings, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"config\.compilation_cache=.*file.* cannot be used \(.*\): give a folder, or off"
    ):
        compilation_cache.use(str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    caplog.set_level("INFO", logger="reangle_jax")
    compilation_cache.use()
    assert "compiled programs are not kept" in caplog.text
    assert settings == {}


@pytest.mark.parametrize("kept", [True, False])
def test_a_second_process_finds_what_the_first_compiled(tmp_path, kept):
    program = """if True:
        import sys, jax
        from reangle_jax import compilation_cache
        compilation_cache.use(sys.argv[1])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        hits = []
        jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
        jax.jit(lambda x: x * 2 + 1)(jax.numpy.arange(8.0)).block_until_ready()
        print(any(hits))
    """
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR")
    found = [
        subprocess.run(
            [sys.executable, "-c", program, "auto" if kept else "off"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert found == ["False", str(kept)]
    assert (tmp_path / "reangle_jax").exists() == kept
