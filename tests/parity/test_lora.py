"""LoRA files against diffusers and PEFT: theirs here, ours there, several at once; equal outputs."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from converters import lora as command
from reangle_jax import checkpoints
from reangle_jax.backbones.cogvideox import lora
from reangle_jax.models.cogvideox.transformer import Transformer
from tests.parity.test_cogvideox_transformer import T2V, WHOLE, apply, error, inputs, load, original, run_original

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
TARGETS = list(lora.TARGETS.values())
PIPELINE = diffusers.CogVideoXPipeline


@pytest.fixture(scope="module")
def args():
    return inputs(np.random.default_rng(1), T2V, 2, 8, 12)


@pytest.fixture(scope="module")
def ours():
    """Our outputs with adapters, the base being ``original(T2V)``."""
    base = nnx.state(load(original(T2V), T2V))

    def run(adapters, args):
        config = dataclasses.replace(T2V, lora_rank=adapters.rank, lora_alpha=adapters.alpha)
        model = checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))
        nnx.update(model, base)
        nnx.update(model, lora.to_state(adapters, config))
        return apply(model, lambda model, *args: model(*args), *args)

    return run


def adapt(model, rank, alpha, name="default", steps=0):
    """Gives their transformer an adapter, trained by PEFT for a few steps on noise, or random."""
    model.add_adapter(
        peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights=bool(steps)),
        adapter_name=name,
    )
    parameters = [value for key, value in model.named_parameters() if f".{name}." in key]
    if not steps:
        with torch.no_grad():
            for value in parameters:
                value.copy_(0.3 * torch.randn(value.shape))
    optimiser = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(steps):
        latents = torch.randn(1, 2, T2V.in_channels, 8, 12)
        text = torch.randn(1, T2V.max_text_seq_length, T2V.text_embed_dim)
        out = model(latents, text, torch.tensor([500]), return_dict=False)[0]
        optimiser.zero_grad()
        (out - torch.randn_like(out)).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()


def save_theirs(model, folder, *, metadata, name="default"):
    layers = peft.get_peft_model_state_dict(model, adapter_name=name)
    described = model.peft_config[name].to_dict() if metadata else None
    PIPELINE.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=described)
    return folder


def test_one_trained_by_peft(args, ours, tmp_path):
    torch.manual_seed(0)
    theirs = original(T2V)
    before = run_original(theirs, T2V, *args)
    adapt(theirs, 4, 6.0, steps=3)
    want = run_original(theirs, T2V, *args)
    assert error(before, want) > 1e-3
    save_theirs(theirs, tmp_path / "theirs", metadata=True)
    adapters = lora.read(tmp_path / "theirs", T2V)
    assert (adapters.rank, adapters.alpha) == (4, 6.0)
    assert error(ours(adapters, args), want) < WHOLE


def test_without_metadata_alpha_is_a_flag_or_the_rank(args, ours, tmp_path):
    torch.manual_seed(1)
    theirs = original(T2V)
    adapt(theirs, 4, 6.0)
    save_theirs(theirs, tmp_path / "theirs", metadata=False)
    given = lora.read(tmp_path / "theirs", T2V, alpha=6.0)
    assert error(ours(given, args), run_original(theirs, T2V, *args)) < WHOLE
    # Diffusers without metadata: scale 1.
    fresh = original(T2V)
    tensors = PIPELINE.lora_state_dict(tmp_path / "theirs", local_files_only=True)
    PIPELINE.load_lora_into_transformer(tensors, fresh)
    assert error(ours(lora.read(tmp_path / "theirs", T2V), args), run_original(fresh, T2V, *args)) < WHOLE


def test_imported_exported_and_loaded_there(args, ours, tmp_path, monkeypatch):
    """Through both commands: the file that comes out is theirs to the last bit, and works there with its alpha."""
    torch.manual_seed(2)
    theirs = original(T2V)
    adapt(theirs, 3, 1.5)
    save_theirs(theirs, tmp_path / "theirs", metadata=True)
    monkeypatch.setattr(command, "_KNOWN", (T2V,))
    assert command.import_command(["--source", str(tmp_path / "theirs"), "--out", str(tmp_path / "lora")]) == 0
    assert command.export_command(["--source", str(tmp_path / "lora"), "--out", str(tmp_path / "o.safetensors")]) == 0
    fresh = original(T2V)
    tensors, metadata = PIPELINE.lora_state_dict(
        tmp_path, weight_name="o.safetensors", return_lora_metadata=True, local_files_only=True
    )
    want = peft.get_peft_model_state_dict(theirs)
    assert {f"transformer.{name}" for name in want} == set(tensors)
    assert all(torch.equal(tensors[f"transformer.{name}"], value) for name, value in want.items())
    PIPELINE.load_lora_into_transformer(tensors, fresh, metadata=metadata)
    assert fresh.peft_config["default_0"].lora_alpha == 1.5
    got = run_original(fresh, T2V, *args)
    np.testing.assert_array_equal(got, run_original(theirs, T2V, *args))
    assert error(ours(lora.read(tmp_path / "lora", T2V), args), got) < WHOLE


@pytest.mark.parametrize("stabilised", [False, True])
def test_pefts_own_folder(args, ours, tmp_path, stabilised):
    """Ranks and alphas by pattern, which stand in adapter_config.json alone."""
    torch.manual_seed(4)
    theirs = original(T2V)
    described = peft.LoraConfig(
        r=4,
        lora_alpha=6.0,
        target_modules=TARGETS,
        rank_pattern={"to_v": 2},
        alpha_pattern={r"transformer_blocks\.1\.attn1\.to_q": 20},
        use_rslora=stabilised,
        init_lora_weights=False,
    )
    wrapped = peft.get_peft_model(theirs, described)
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if "lora" in name:
                value.copy_(0.2 * torch.randn(value.shape))
    wrapped.save_pretrained(tmp_path / "peft")
    adapters = lora.read(tmp_path / "peft", T2V)
    assert adapters.rank == 4
    want = run_original(theirs, T2V, *args)
    assert error(ours(adapters, args), want) < WHOLE
    assert error(ours(dataclasses.replace(adapters, alpha=4 * adapters.alpha), args), want) > 10 * WHOLE


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_several_with_weights(args, ours, tmp_path):
    torch.manual_seed(3)
    theirs, parts = original(T2V), []
    for name, rank, alpha, weight in (("one", 4, 6.0, 0.7), ("two", 2, 1.0, -1.5)):
        adapt(theirs, rank, alpha, name)
        save_theirs(theirs, tmp_path / name, metadata=True, name=name)
        parts.append((lora.read(tmp_path / name, T2V), weight))
    theirs.set_adapters(["one", "two"], [weight for _, weight in parts])
    want = run_original(theirs, T2V, *args)
    assert error(ours(lora.combine(parts), args), want) < WHOLE
    theirs.set_adapters(["two"], [parts[1][1]])
    alone = run_original(theirs, T2V, *args)
    assert error(alone, want) > 0.01
    assert error(ours(lora.combine([(parts[0][0], 0.0), parts[1]]), args), alone) < WHOLE
