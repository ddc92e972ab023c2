"""How networks are computed: chosen by device and type, apart from their configs."""

import dataclasses

import pytest

from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.depth_anything import DepthAnythingConfig
from reangle_jax.models.dino import DinoConfig, FeatUpConfig
from reangle_jax.models.dust3r import Dust3rConfig
from reangle_jax.models.lpips import LpipsConfig
from reangle_jax.models.text.t5 import T5Config
from reangle_jax.nn.attention import compiling_for
from reangle_jax.nn.choices import Choice
from reangle_jax.nn.execution import Execution, check

CONFIGS = (
    TransformerConfig, VAEConfig, DepthAnythingConfig, DinoConfig, FeatUpConfig, Dust3rConfig, LpipsConfig, T5Config
)  # fmt: skip


@pytest.mark.parametrize(
    ("platform", "stored", "attention"),
    [
        ("cpu", "float32", "mapped"),
        ("cpu", "bfloat16", "mapped"),
        ("gpu", "float32", "mapped"),
        ("gpu", "bfloat16", "cudnn"),
        ("tpu", "float32", "mapped"),
        ("tpu", "bfloat16", "splash"),
    ],
)
def test_auto_follows_device_and_type(platform, stored, attention):
    with compiling_for(platform):
        assert Execution.chosen(stored) == Execution(attention, remat="attention", dtype=stored)


def test_what_is_asked_for_is_taken():
    chosen = Execution.chosen("bfloat16", Choice("xla", remat="none", dtype="float32"))
    assert chosen == Execution("xla", remat="none", dtype="float32")
    with compiling_for("gpu"):  # the kernel's types decide after the type is chosen
        assert Execution.chosen("float32", Choice(dtype="bfloat16")).attention == "cudnn"
    assert Execution.in_type("bfloat16") == Execution(dtype="bfloat16")
    assert Execution.in_type("bfloat16", Choice("xla", dtype="float32")) == Execution()


def test_impossible_choices_are_refused():
    with pytest.raises(
        InputError, match=r"config\.execution\.attention='cudnn' needs a GPU, and this is a CPU: use auto"
    ):
        check("cudnn")
    with (
        compiling_for("tpu"),
        pytest.raises(InputError, match="'splash' is for 16-bit types, not float32: use auto, or"),
    ):
        Execution.chosen("float32", Choice("splash"))
    with pytest.raises(ValueError, match="'flash' is not one of plain, mapped"):
        Execution("flash")


@pytest.mark.parametrize("config", CONFIGS)
def test_configs_say_nothing_of_it(config):
    names = {field.name for field in dataclasses.fields(config)}
    assert not names & {"attention", "attention_impl", "remat", "dtype"}
    assert "param_dtype" in names
