"""The command between our weights and folders that diffusers and transformers write and open themselves.

Tolerance: largest difference relative to the largest value. Float32 on both sides, the same operations in another
order: below 1e-5 was measured for either network; the transformer's depth is given 3e-5.
"""

import dataclasses
import json
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from safetensors.numpy import load_file

from converters import command, registry
from reangle_jax import checkpoints, tiny
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from tests.conversion import convert
from tests.parity.test_cogvideox_transformer import run_original
from tests.published import SMALL

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

MODEL = "cogvideox-5b-i2v"


def randomise(model):
    """Every parameter away from its initial value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def cogvideox(part):
    """The original network of the small test weights' shape, and the base of its files' names."""
    fields = registry.find(f"{MODEL}/{part}")[1][0].write_config(SMALL[part])
    if part == "text_encoder":
        return transformers.T5EncoderModel(transformers.T5Config(**fields))
    network = {"transformer": diffusers.CogVideoXTransformer3DModel, "vae": diffusers.AutoencoderKLCogVideoX}[part]
    return network(**{key: value for key, value in fields.items() if not key.startswith("_")})


def depth(metric):
    config = SMALL["depth"]
    backbone = transformers.Dinov2Config(
        hidden_size=config.width,
        num_attention_heads=config.heads,
        num_hidden_layers=config.depth,
        image_size=config.short_side,
        patch_size=config.patch_size,
        out_indices=list(config.taps),
        apply_layernorm=True,
        reshape_hidden_states=False,
        layer_norm_eps=1e-6,
    )
    return transformers.DepthAnythingForDepthEstimation(
        transformers.DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=config.width,
            neck_hidden_sizes=list(config.neck_widths),
            fusion_hidden_size=config.fusion_width,
            head_hidden_size=config.head_width,
            depth_estimation_type="metric" if metric else "relative",
            max_depth=20 if metric else 1,
        )
    )


def check_folder(folder, out, name, config):
    """Converts what save_pretrained wrote, and compares with the plain rules on the files' tensors."""
    (part,) = registry.find(name)[1]
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert command.main([name, "--source", str(folder), "--out", str(out), "--dtype=float32"]) == 0
    assert checkpoints.load_config(out / part.name, type(config)) == config
    with ocp.PyTreeCheckpointer() as checkpointer:
        got = checkpointer.restore((out / part.name / "params").absolute())
    tensors = {key: x for shard in shards for key, x in load_file(shard).items()}
    model = checkpoints.abstract(lambda: part.network(config, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(v.shape) for path, v in checkpoints.parameter_paths(model).items()}
    want = convert(tensors, part.layouts[0].table(config), shapes)
    assert got.keys() == want.keys()
    for path, x in want.items():
        np.testing.assert_array_equal(got[path], x, err_msg=path)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_sharded_folders_of_save_pretrained(tmp_path, part):
    model = randomise(cogvideox(part)).float()  # a fresh position table is float64, the published one is not
    size = sum(p.numel() for p in model.parameters()) * 4
    model.save_pretrained(tmp_path / "in" / part, max_shard_size=size // 3)
    check_folder(tmp_path / "in" / part, tmp_path / "out", f"{MODEL}/{part}", SMALL[part])


@pytest.mark.parametrize("metric", [False, True])
def test_sharded_folder_of_depth_anything(tmp_path, metric):
    model = randomise(depth(metric))
    model.save_pretrained(tmp_path / "in", max_shard_size="60KB")
    config = dataclasses.replace(SMALL["depth"], max_depth=20.0) if metric else SMALL["depth"]
    check_folder(tmp_path / "in", tmp_path / "out", "depth-anything-v2-small", config)


@pytest.fixture(scope="module")
def small_family(tmp_path_factory):
    """The project's own small networks in the published layout."""
    out = tmp_path_factory.mktemp("torch")
    assert command.main([MODEL, "--source", str(tiny.WEIGHTS), "--out", str(out), "--to-torch"]) == 0
    assert sorted(os.listdir(out)) == ["text_encoder", "transformer", "vae"]
    return out


def load(network, config_class, part):
    """Our network of the small family: its config, and what runs one of its methods."""
    folder = tiny.WEIGHTS / part
    config = checkpoints.load_config(folder, config_class)
    model = checkpoints.load_into(checkpoints.abstract(lambda: network(config, rngs=nnx.Rngs(0))), folder)
    graphdef, state = nnx.split(model)
    return config, lambda method, *inputs: np.asarray(
        jax.jit(lambda state, *inputs: method(nnx.merge(graphdef, state), *inputs))(state, *inputs)
    )


def difference(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def test_diffusers_opens_the_small_transformer(small_family, rng):
    theirs, info = diffusers.CogVideoXTransformer3DModel.from_pretrained(
        small_family / "transformer", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    config, ours = load(Transformer, TransformerConfig, "transformer")
    shape = (1, config.sample_latent_frames, config.sample_height, config.sample_width, config.in_channels)
    latents = rng.normal(size=shape).astype(np.float32)
    text = rng.normal(size=(1, config.max_text_seq_length, config.text_embed_dim)).astype(np.float32)
    times = np.array([499.0], np.float32)
    got = ours(lambda model, *inputs: model(*inputs), latents, text, times)
    assert difference(got, run_original(theirs.eval(), config, latents, text, times)) < 3e-5


def test_diffusers_opens_the_small_autoencoder(small_family, rng):
    theirs, info = diffusers.AutoencoderKLCogVideoX.from_pretrained(small_family / "vae", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    config, ours = load(VAE, VAEConfig, "vae")
    assert theirs.config.scaling_factor == config.scaling_factor
    latents = rng.normal(size=(1, 3, 4, 6, config.latent_channels)).astype(np.float32)
    got = ours(lambda model, z: model.decode(z), latents)
    with torch.no_grad():
        want = theirs.decode(torch.from_numpy(np.moveaxis(latents, -1, 1).copy())).sample.numpy()
    assert difference(got, np.moveaxis(want, 1, -1)) < 1e-5


def test_transformers_opens_the_small_text_encoder(small_family):
    config = json.loads((small_family / "text_encoder/config.json").read_text())
    model, info = transformers.T5EncoderModel.from_pretrained(small_family / "text_encoder", output_loading_info=True)
    assert not any(info[key] for key in ("unexpected_keys", "mismatched_keys"))
    assert set(info["missing_keys"]) <= {"encoder.embed_tokens.weight"}  # tied to shared.weight
    assert model.config.d_model == config["d_model"]
