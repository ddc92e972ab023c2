"""A family of other ratios that matches flows goes through a whole run; backbones/ and tests alone know of it."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax import chosen_models, config, main
from reangle_jax.backbones import interface, registry
from reangle_jax.data import files, video
from reangle_jax.stages import finetune
from tests.backbones import flowing

FRAMES, HEIGHT, WIDTH = 7, 36, 44  # 1 + 2k, and multiples of 4 that are none of 16


@pytest.fixture(scope="module", autouse=True)
def registered():
    registry.ENTRIES[flowing.NAME] = flowing.ENTRY
    yield
    registry.ENTRIES.pop(flowing.NAME)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A clip of drifting waves, its depth, the family's weights and a config."""
    folder = tmp_path_factory.mktemp("second")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = [127 + 100 * np.sin(np.stack([x + 3 * t, y, x + y], axis=-1) / 6) for t in range(FRAMES)]
    video.write_video(folder / "clip.mp4", np.stack(frames).astype(np.uint8), 8)
    depth = np.broadcast_to(2.0 + y / HEIGHT, (FRAMES, HEIGHT, WIDTH)).astype(np.float32)
    np.save(folder / "depth.npy", depth)
    flowing.write_weights(folder / "weights")
    (folder / "config.py").write_text(
        "from reangle_jax.config import get_default\n"
        "def get_config():\n"
        "    c = get_default()\n"
        f"    c.video, c.depth, c.depth_kind = {str(folder / 'clip.mp4')!r}, {str(folder / 'depth.npy')!r}, 'metric'\n"
        f"    c.num_frames, c.height, c.width = {FRAMES}, {HEIGHT}, {WIDTH}\n"
        f"    c.model, c.weights = {flowing.NAME!r}, {str(folder / 'weights')!r}\n"
        "    c.views, c.train_views, c.caption = ('left:8', 'in:0.1'), ('left:8',), 'waves'\n"
        "    c.finetune.steps, c.finetune.rank, c.finetune.alpha, c.sample.steps = 30, 4, 4.0, 3\n"
        "    c.finetune.learning_rate, c.finetune.batch_size, c.evaluate.untuned = 0.03, 32, True\n"
        "    return c\n"
    )
    return folder


def call(inputs, workdir, *arguments):
    return main.main(["main", f"--config={inputs / 'config.py'}", f"--workdir={workdir}", *arguments])


@pytest.fixture(scope="module")
def whole(inputs):
    with jax.numpy_dtype_promotion("standard"):
        assert call(inputs, inputs / "run") == 0
    return inputs / "run"


def test_a_whole_run(whole):
    for view in ("left_8", "in_0_1"):
        for name in ("frames.npz", "untuned.npz"):
            frames = files.load_npz(whole / "views" / view / name)["frames"]
            assert (frames.shape, frames.dtype) == ((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        assert (whole / "views" / view / "video.mp4").stat().st_size > 0
    losses = json.loads((whole / "lora/losses.json").read_text())
    assert len(losses) == 30
    assert np.mean(losses[-8:]) < np.mean(losses[:8])  # it learns
    record = json.loads((whole / "run.json").read_text())["stages"]["finetune"]
    assert {f"the weights of {part}" for part in flowing.ENTRY.parts} <= record["depends"].keys()
    assert json.loads((whole / "metrics.json").read_text())["mean"]["tuned"]["psnr"] > 0


def test_plan_asks_it_for_its_needs(inputs, whole, capsys):
    assert call(inputs, whole, "--plan") == 0
    out = capsys.readouterr().out
    assert "on 1 x cpu" in out.replace("8 x", "1 x")
    assert "not done yet" not in out
    assert call(inputs, inputs / "other", "--plan") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "KiB" in lines["finetune"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("num_frames=8", "config.num_frames=8 is not possible: it must be 1 + 2k, such as 7 or 9"),
        ("width=46", "config.width=46 is not possible: it must be a multiple of 4, such as 44 or 48"),
        ("model=cogvideox-5b-i2v", "config.num_frames=7 is not possible: it must be 1 + 4k, such as 5 or 9"),
        ("model=flowin", "(did you mean flowing?)"),
        ("weights=none", "config.weights: flowing needs its converted weights, and there is no none/denoiser: set"),
    ],
)
def test_its_grid_and_its_parts_are_what_is_asked_for(inputs, tmp_path, change, words, capfd):
    assert call(inputs, tmp_path / "run", f"--config.{change}") == 2
    assert words in capfd.readouterr().err


def test_its_latent_mask_follows_its_ratios(inputs, whole):
    warp = files.load_npz(whole / "views/left_8/warp.npz")
    backbone = chosen_models.backbone(config.parse(runpy.run_path(str(inputs / "config.py"))["get_config"]()))
    data = finetune.encode_videos(backbone, backbone.load_coder(), lambda _: (warp["frames"], warp["visible"]), 1)
    assert data.mean.shape == (1, 4, HEIGHT // 4, WIDTH // 4, flowing.CHANNELS)
    assert data.mask.shape == data.mean.shape[:-1]
    pair = warp["visible"][1] & warp["visible"][2]
    np.testing.assert_array_equal(data.mask[0, 1], pair[::4, ::4].astype(np.float32))


def test_a_coder_without_loss_gives_back_what_it_was_given(rng):
    clip = jnp.asarray(rng.normal(size=(1, FRAMES, 8, 12, 3)), jnp.float32)
    np.testing.assert_array_equal(flowing.from_patches(flowing.to_patches(clip)), clip)


def test_no_stage_names_a_family():
    """The stages, and what stands beside them, know the interface alone; a default and licences are named."""
    package = Path(interface.__file__).parent.parent
    rooms = [package, *(package / room for room in ("stages", "run", "config", "geometry"))]
    paths = [path for room in rooms for path in (room.glob if room == package else room.rglob)("*.py")]
    assert len(paths) > 40
    assert {path.name for path in paths if "cogvideox" in path.read_text().lower()} == {"settings.py", "licences.py"}
