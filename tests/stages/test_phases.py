"""Fine-tuning and sampling as stages: one network at a time in memory, and a stop loses nothing that was done."""

import contextlib
import gc
import itertools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from reangle_jax import checkpoints, config, mesh
from reangle_jax.backbones.cogvideox import lora, networks, sampling
from reangle_jax.backbones.cogvideox.backbone import CogVideoXBackbone
from reangle_jax.data import files
from reangle_jax.errors import InputError, NotFiniteError
from reangle_jax.progress import progress
from reangle_jax.run import Ledger, run_stage
from reangle_jax.stages import finetune, first_frames, generate
from reangle_jax.stopping import Stop, Stopped
from tests.networks import FRAMES, HEIGHT, WIDTH

pytestmark = pytest.mark.usefixtures("optax_promotion")
VIEWS = ("left:8", "in:0.1")


def settings(weights, **changes):
    values = config.get_tiny().to_dict() | {
        "video": "v.mp4", "weights": str(weights), "views": VIEWS, "train_views": VIEWS[:1],
        "num_frames": FRAMES, "height": HEIGHT, "width": WIDTH,
    }  # fmt: skip
    values["finetune"] |= {"steps": 3, "rank": 2, "alpha": 2.0, "checkpoint_every": 0, "moving_weight": 0.0}
    values["sample"] |= {"steps": 2}
    for key, value in changes.items():
        group, _, leaf = key.rpartition("__")
        (values[group] if group else values)[leaf] = value
    return config.parse(values)


def warped(root):
    """A run's folder up to the warps."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3)).astype(np.uint8)
    files.atomic_savez(root / "input/frames.npz", frames=clip, fps=np.float64(8))
    visible = np.ones(clip.shape[:3], bool)
    files.atomic_savez(root / "views/left_8/warp.npz", frames=clip, visible=visible)
    return root


@pytest.fixture
def folder(tmp_path):
    return warped(tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small_weights):
    """The adapters of a fine-tuning that nothing stopped."""
    root = warped(tmp_path_factory.mktemp("undisturbed") / "run")
    with jax.numpy_dtype_promotion("standard"):
        go(root, settings(small_weights), finetune)
    return (root / "lora/lora.safetensors").read_bytes()


def go(root, settings, *stages):
    stop = Stop()
    with stop.installed(), Ledger.opened(root, settings) as ledger:
        for stage in stages:
            run_stage(stage.STAGE, ledger, stop=stop)


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


class Held:
    """Bytes of arrays alive, beside those from before, whenever a watched function is called and when it returns."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.base, self.seen = monkeypatch, live_bytes(), {}

    def watch(self, owner, name, label=None):
        real, label = getattr(owner, name), label or name

        def watched(*arguments, **options):
            self.note(f"before {label}")
            result = real(*arguments, **options)
            self.note(f"after {label}")
            return result

        self.monkeypatch.setattr(owner, name, watched)

    def note(self, label):
        self.seen[label] = max(live_bytes() - self.base, self.seen.get(label, 0))


def size(folder):
    return sum(array.nbytes for array in load_file(folder / "model.safetensors").values())


@pytest.fixture(scope="module")
def sizes(small_weights):
    parts = {part: size(small_weights / part) for part in ("transformer", "vae", "text_encoder")}
    decoder = sum(
        v.nbytes for k, v in load_file(small_weights / "vae/model.safetensors").items() if k.startswith("decoder")
    )
    return parts | {"decoder": decoder, "encoder": parts["vae"] - decoder}


@pytest.mark.slow
def test_each_network_is_in_memory_only_while_it_is_needed(folder, small_weights, sizes, monkeypatch):
    held = Held(monkeypatch)
    held.watch(networks, "embed_prompts")
    held.watch(finetune, "encode_videos")
    held.watch(finetune, "make_step")
    held.watch(sampling.Sampler, "condition")
    held.watch(sampling.Sampler, "denoise")
    held.watch(sampling.Sampler, "decode")
    held.watch(checkpoints, "load_into")
    go(folder, settings(small_weights), finetune, first_frames, generate)
    seen = held.seen
    # What is no network: the adapters with their gradient and moments, the clip encoded, the texts, a video.
    spare = 100_000
    assert spare < min(sizes["transformer"], sizes["vae"], sizes["encoder"])
    assert seen["before embed_prompts"] < spare
    assert seen["after embed_prompts"] < spare
    assert sizes["encoder"] <= seen["before encode_videos"] < sizes["encoder"] + spare
    # The encoder stays for the noised first frames.
    training = sizes["transformer"] + sizes["encoder"]
    assert training <= seen["before make_step"] < training + spare
    assert sizes["encoder"] <= seen["before condition"] < sizes["encoder"] + spare
    assert sizes["transformer"] <= seen["before denoise"] <= seen["after denoise"] < sizes["transformer"] + spare
    assert sizes["vae"] <= seen["before decode"] < sizes["vae"] + spare
    # When a network comes in, at most the encoder is there.
    assert seen["before load_into"] < sizes["encoder"] + spare
    held.note("end")
    assert seen["end"] < spare


@pytest.mark.slow
def test_views_beside_each_other_are_as_each_alone(folder, small_weights, tmp_path, monkeypatch):
    """Room for two: three views and their untuned videos are four groups, the half-full ones filled up."""
    three = settings(small_weights, views=(*VIEWS, "up:5"), evaluate__untuned=True)
    go(folder, three, finetune, first_frames)
    shutil.copytree(folder, other := tmp_path / "other")
    go(folder, three, generate)
    groups, real = [], sampling.Sampler.denoise

    def denoise(self, adapters, base, noise, *rest, **options):
        groups.append(len(noise))
        return real(self, adapters, base, noise, *rest, **options)

    monkeypatch.setattr(sampling.Sampler, "denoise", denoise)
    monkeypatch.setattr(mesh, "room", lambda: 2)
    go(other, three, generate)
    assert groups == [2, 2, 2, 2]
    found = sorted(
        path.relative_to(folder) for path in folder.glob("views/*/*.npz") if path.stem in ("frames", "untuned")
    )
    assert len(found) == 6
    for path in found:
        one, both = (files.load_npz(root / path)["frames"].astype(int) for root in (folder, other))
        assert np.abs(one - both).max() <= 1, path  # rounding
    videos = [files.load_npz(other / path)["frames"] for path in found]
    assert all((a != b).any() for a, b in itertools.combinations(videos, 2))


class Killer:
    """Sends SIGTERM to this process when a function is called or a bar reaches a count."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def when_called(self, owner, name):
        real = getattr(owner, name)

        def killing(*arguments, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*arguments, **options)

        self.monkeypatch.setattr(owner, name, killing)

    def when_done(self, description, count):
        real = progress.update

        def update(bar, *arguments, **values):
            real(bar, *arguments, **values)
            if bar._description == description and bar._done == count:
                os.kill(os.getpid(), signal.SIGTERM)

        self.monkeypatch.setattr(progress, "update", update)


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("where", ["last step", "before writing", "while writing"])
def test_a_signal_at_the_end_of_fine_tuning_loses_nothing(
    folder, undisturbed, small_weights, monkeypatch, where, every
):
    chosen = settings(small_weights, finetune__checkpoint_every=every)
    killer = Killer(monkeypatch)
    if where == "last step":
        killer.when_done("finetune", 3)
    elif where == "before writing":
        killer.when_called(files, "atomic_folder")
    else:
        killer.when_called(lora, "export_lora_safetensors")
    with pytest.raises(Stopped):
        go(folder, chosen, finetune)
    monkeypatch.undo()
    learnt = json.loads((folder / "lora/learning.json").read_text())
    assert learnt["loss"] == json.loads((folder / "lora/losses.json").read_text())
    assert {key: len(values) for key, values in learnt.items()} == dict.fromkeys(
        ("loss", "gradient_norm", "update_norm", "learning_rate"), 3
    )
    # It falls over all steps, as a cosine.
    assert learnt["learning_rate"] == pytest.approx([chosen.finetune.learning_rate * x for x in (1, 0.75, 0.25)])
    assert (folder / "lora/lora.safetensors").read_bytes() == undisturbed
    with Ledger.opened(folder, chosen) as ledger:
        assert not run_stage(finetune.STAGE, ledger)  # it is done


def spoiled(small_weights, tmp_path):
    """The weights with one NaN, in the transformer."""
    weights = tmp_path / "spoiled"
    shutil.copytree(small_weights, weights)
    arrays = load_file(weights / "transformer/model.safetensors")
    name = next(name for name in arrays if name.endswith("to_q.kernel"))
    arrays[name] = arrays[name].copy()
    arrays[name].flat[0] = np.nan
    save_file(arrays, weights / "transformer/model.safetensors")
    return weights


@pytest.mark.slow
def test_a_nan_in_a_weight_is_named_in_training_and_in_sampling(folder, small_weights, tmp_path):
    weights = spoiled(small_weights, tmp_path)
    for _ in range(2):
        with pytest.raises(
            NotFiniteError, match=r"^finetune: the loss of step 1 is nan: the weights or the input hold"
        ):
            go(folder, settings(weights, finetune__steps=30), finetune)
    assert not (folder / "lora").exists()
    with pytest.raises(NotFiniteError, match=r"^generate: the latents of left:8 are not finite: lower "):
        go(folder, settings(weights, finetune__steps=0), finetune, first_frames, generate)
    assert not (folder / "views/left_8/frames.npz").exists()


def test_an_encoded_set_that_is_not_finite_is_refused_and_not_kept(folder, small_weights, monkeypatch):
    monkeypatch.setattr(networks, "embed_prompts", lambda *_, **__: np.full((2, 4, 16), np.nan, np.float32))
    with pytest.raises(NotFiniteError, match=r"the prompts' embeddings are not finite: convert the"):
        go(folder, settings(small_weights), finetune)
    assert not list(folder.rglob("encoded.npz"))


def test_sampling_is_not_repeated_when_decoding_is_stopped(folder, small_weights, monkeypatch):
    chosen = settings(small_weights, finetune__steps=0)
    Killer(monkeypatch).when_called(sampling.Sampler, "decode")
    with pytest.raises(Stopped):
        go(folder, chosen, finetune, first_frames, generate)
    monkeypatch.undo()
    # Stopped while the first view was decoded: both are sampled. The texts and the transformer are not needed again.
    for owner, name in (
        (networks, "embed_prompts"),
        (CogVideoXBackbone, "load_denoiser"),
        (sampling.Sampler, "denoise"),
    ):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("done again"))
    go(folder, chosen, generate)
    record = json.loads((folder / "run.json").read_text())["stages"]
    assert all(record[f"generate/{name}"]["seconds"] > 0 for name in ("left_8", "in_0_1"))
    assert not list((folder / ".scratch/generate").glob("*/*"))


def test_a_signal_whose_exception_python_drops_still_stops(folder, small_weights, monkeypatch):
    """As when it comes while XLA's callback collects garbage."""
    real, stops, steps = sampling.Sampler.noise, [], []
    installed = Stop.installed
    monkeypatch.setattr(Stop, "installed", lambda stop: stops.append(stop) or installed(stop))

    def interrupted(*arguments, **options):
        with contextlib.suppress(Stopped):
            stops[-1].handle(signal.SIGTERM, None)
        return real(*arguments, **options)

    monkeypatch.setattr(sampling.Sampler, "noise", interrupted)
    update = progress.update
    monkeypatch.setattr(progress, "update", lambda bar, *a, **v: steps.append(bar._description) or update(bar, *a, **v))
    with pytest.raises(Stopped):
        go(folder, settings(small_weights, finetune__steps=0), finetune, first_frames, generate)
    assert steps == ["generate"]


def test_too_little_memory_is_one_line_with_what_helps(folder, small_weights, monkeypatch):
    def too_large(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 65454971592 bytes.")

    monkeypatch.setattr(finetune, "encode_videos", too_large)
    with pytest.raises(InputError) as caught:
        go(folder, settings(small_weights, finetune__batch_size=3000), finetune)
    line = str(caught.value)
    assert line.startswith("finetune: out of memory: 61.0 GiB were asked for at once, of ")
    assert "config.finetune.batch_size=3000 (lower)" in line
    for key in ("num_frames", "height", "width", "vae_tiles", "mesh"):
        assert f"config.{key}=" in line
