"""The shared training loop: it learns, goes on where it stopped, and leaves alone what it must."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reangle_jax import commands
from reangle_jax.errors import NotFiniteError
from reangle_jax.stopping import Stopped
from training import train_text, train_vae, training
from training.train_transformer import mirrored_prompt

# optax raises float32 to the power of an int32 count.
pytestmark = pytest.mark.usefixtures("optax_promotion")
TRUE = np.array([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]], np.float32)


def loss(parameters, batch, key):
    del key
    error = batch["x"] @ parameters["kernel"] + parameters["bias"][None, :] - batch["y"]
    value = jnp.mean(jnp.square(error))
    return value, {"largest": jnp.max(jnp.abs(error))}


def make_batch(rng, step):
    del step
    x = rng.standard_normal((8, 3)).astype(np.float32)
    return {"x": x, "y": x @ TRUE + 1.0}


def start():
    return {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros((2,))}


def run(folder, steps, stop_after=None, trainable=None):
    batches, save_every = make_batch, 120.0
    if stop_after is not None:
        save_every = 0.0

        def batches(rng, step):
            if step >= stop_after:
                raise RuntimeError("killed")
            return make_batch(rng, step)

    # A rate that is constant up to the decay, which both runs share: only the length of the schedule decides it.
    config = training.TrainConfig(
        steps=steps, learning_rate=0.1, warmup=5, ema=0.9, log_every=5, save_every=save_every, weight_decay=0.0
    )
    return training.train(loss, start(), batches, config, folder, trainable=trainable)


def test_learns_a_linear_map(tmp_path):
    mean = run(tmp_path, 400)
    np.testing.assert_allclose(mean["kernel"], TRUE, atol=0.05)
    np.testing.assert_allclose(mean["bias"], [1.0, 1.0], atol=0.05)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0
    assert lines[-1]["loss"] < 0.01 * lines[0]["loss"]


def test_a_run_that_was_cut_off_ends_as_an_unbroken_one(tmp_path):
    whole = run(tmp_path / "whole", 30)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "broken", 30, stop_after=17)
    resumed = run(tmp_path / "broken", 30)
    # Bitwise: the same program on the same batches.
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_numbers_that_are_not_finite_end_it_with_the_last_good_state(tmp_path):
    def batches(rng, step):
        batch = make_batch(rng, step)
        return batch | {"y": batch["y"] * np.float32(np.nan if step >= 7 else 1)}

    config = training.TrainConfig(steps=200, learning_rate=0.1, warmup=5, ema=0.9, log_every=5, weight_decay=0.0)
    with pytest.raises(NotFiniteError, match=r"^training: the loss of step 8 is nan: lower --rate"):
        training.train(loss, start(), batches, config, tmp_path)
    # What was kept is the state before it: training on with other batches learns.
    mean = training.train(loss, start(), make_batch, config, tmp_path)
    np.testing.assert_allclose(mean["kernel"], TRUE, atol=0.1)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"loss", "gradient_norm", "update_norm", "rate"} <= lines[-1].keys()
    assert [line["step"] for line in lines[:3]] == [0, 5, 10]


def test_the_clock_ends_it_and_goes_on_where_it_stood(tmp_path):
    # Longer than a busy machine compiles: the first step's length is not known when the training goes on.
    config = training.TrainConfig(steps=10**9, minutes=1 / 15, warmup=5, log_every=5)
    measured = []

    def evaluate(mean):
        measured.append(mean)
        return {"heldout_bias": float(mean["bias"].mean())}

    first = training.train(loss, start(), make_batch, config, tmp_path, evaluate=evaluate)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line for line in lines if "heldout_bias" in line] == [lines[-1]]
    assert lines[-1]["heldout_bias"] == pytest.approx(float(first["bias"].mean()), abs=1e-6)
    # The minutes are behind it, but for its last step, whose length nobody knew when it began: one more at most.
    training.train(loss, start(), make_batch, config, tmp_path, evaluate=evaluate)
    again = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert again[: len(lines)] == lines
    assert again[-1]["step"] <= lines[-1]["step"] + 1
    assert len(measured) <= 2


def test_a_signal_keeps_every_step(tmp_path):
    whole = run(tmp_path / "whole", 20)

    def batches(rng, step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return make_batch(rng, step)

    config = training.TrainConfig(steps=20, learning_rate=0.1, warmup=5, ema=0.9, log_every=5, weight_decay=0.0)
    with pytest.raises(Stopped):
        training.train(loss, start(), batches, config, tmp_path / "stopped")
    # Bitwise: the same program on the same batches.
    jax.tree.map(np.testing.assert_array_equal, run(tmp_path / "stopped", 20), whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--workdir", "w", "--scenes", "none"],
            "error: none has no clip records: run python -m training.dataset --out none --clips COUNT",
        ),
        (["--workdir", "w"], "error: the following arguments are required: --scenes (see --help)"),
        (["--workers=-1"], "error: argument --workers: -1 is no whole number from 0 on (see --help)"),
        (["--steps", "0"], "error: argument --steps: 0 is no whole number from 1 on (see --help)"),
        (["--steps", "few"], "error: argument --steps: few is no whole number from 1 on (see --help)"),
    ],
)
def test_unusable_input_is_answered_in_one_line(tmp_path, arguments, words, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["train_text", *arguments])
    monkeypatch.chdir(tmp_path)
    assert commands.answer(lambda stop: train_text.main()) == 2
    assert capfd.readouterr().err == f"{words}\n"


def test_weights_that_are_not_there_are_told_by_their_flag(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["train_vae", "--workdir", "w", "--init", "nowhere"])
    monkeypatch.chdir(tmp_path)
    assert commands.answer(lambda stop: train_vae.main()) == 2
    assert (
        capfd.readouterr().err == "error: --init: nowhere/config.json is missing; give a folder of converted weights\n"
    )


def test_what_is_not_trainable_keeps_its_value(tmp_path):
    factors = {"kernel": jnp.zeros((1, 1)), "bias": jnp.ones((1,))}
    mean = run(tmp_path, 20, trainable=factors)
    np.testing.assert_array_equal(mean["kernel"], 0)
    assert float(jnp.abs(mean["bias"]).min()) > 0.1


def test_rate_warms_up_and_ends_at_zero():
    config = training.TrainConfig(steps=100, learning_rate=1.0, warmup=10, decay=0.5)
    assert config.rate(0.0, 0) == pytest.approx(0.1)
    assert config.rate(0.4, 40) == pytest.approx(1.0)
    assert config.rate(0.75, 75) == pytest.approx(0.5)
    assert config.rate(1.0, 100) == pytest.approx(0.0)


def test_the_mirror_image_swaps_left_and_right():
    prompt = "CAMERA_ORBIT_LEFT CAMERA_DOLLY_IN Camera movement orbit left and dolly in, a leftover right, upright"
    mirrored = "CAMERA_ORBIT_RIGHT CAMERA_DOLLY_IN Camera movement orbit right and dolly in, a leftover left, upright"
    assert mirrored_prompt(prompt) == mirrored
    assert mirrored_prompt(mirrored) == prompt
