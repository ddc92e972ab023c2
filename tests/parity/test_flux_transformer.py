"""FLUX's transformer and its inpainting ControlNet against diffusers, on random weights, through the conversion table.

Tolerances are relative to the largest value: 1e-4 for a stack of blocks in float32. What differs is the order of
sums, and the sinusoids of times up to 1000 (see test_cogvideox_transformer.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tables import flux_transformer
from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.flux.controlnet import FluxControlNet
from reangle_jax.models.flux.tokens import pack, rope_table, unpack
from reangle_jax.models.flux.transformer import FluxTransformer
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from tests.conversion import convert, fill, revert

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformer_flux = pytest.importorskip("diffusers.models.transformers.transformer_flux")

WHOLE = 1e-4
SMALL = FluxConfig(
    num_layers=5,
    num_single_layers=3,
    num_attention_heads=2,
    attention_head_dim=16,
    axes_dims_rope=(4, 4, 8),
    text_embed_dim=20,
    pooled_embed_dim=12,
    in_channels=8,
    out_channels=8,
)
FILL = dataclasses.replace(SMALL, in_channels=24)
UNGUIDED = dataclasses.replace(SMALL, guidance_embeds=False)
CONTROL = ControlNetConfig(
    **dataclasses.asdict(SMALL) | {"num_layers": 4, "num_single_layers": 0}, condition_channels=10, base_layers=5
)
GRID, TEXT = (4, 6), 7


def scattered(model):
    """Every parameter of a module away from its initial value."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "norm" in name and value.ndim == 1 and name.endswith("weight"):
                value.copy_(1 + 0.3 * torch.randn(value.shape))
            elif value.ndim == 1:
                value.copy_(0.3 * torch.randn(value.shape))
            else:
                value.copy_(torch.randn(value.shape) * value[0].numel() ** -0.5)
    return model.eval()


def fields(config):
    return {
        "in_channels": config.in_channels,
        "num_layers": config.num_layers,
        "num_single_layers": config.num_single_layers,
        "attention_head_dim": config.attention_head_dim,
        "num_attention_heads": config.num_attention_heads,
        "joint_attention_dim": config.text_embed_dim,
        "pooled_projection_dim": config.pooled_embed_dim,
        "guidance_embeds": config.guidance_embeds,
        "axes_dims_rope": config.axes_dims_rope,
    }


def original(config):
    return scattered(diffusers.FluxTransformer2DModel(**fields(config), out_channels=config.out_channels))


def original_controlnet(config):
    with pytest.warns(FutureWarning, match="FluxPosEmbed"):  # diffusers uses its own old name
        model = diffusers.FluxControlNetModel(**fields(config))
    model.controlnet_x_embedder = torch.nn.Linear(config.condition_channels, config.inner_dim)
    return scattered(model)


def load(torch_model, make, table):
    """Our model with the same parameters, and no parameter or tensor left."""
    source = {name: value.numpy().astype(np.float32) for name, value in torch_model.state_dict().items()}
    model = abstract(make)
    shapes = {path: tuple(v.shape) for path, v in parameter_paths(model).items()}
    arrays = convert(source, table, shapes)
    fill(model, arrays)
    back = revert(arrays, table)
    assert back.keys() == source.keys()
    assert all(np.array_equal(back[name], source[name]) for name in source)
    return model


def inputs(rng, config, batch=2, grid=GRID):
    """Tokens, text, the text's vector, times and guidance."""
    return (
        rng.normal(size=(batch, grid[0] * grid[1], config.in_channels)).astype(np.float32),
        rng.normal(size=(batch, TEXT, config.text_embed_dim)).astype(np.float32),
        rng.normal(size=(batch, config.pooled_embed_dim)).astype(np.float32),
        np.array([1.0, 0.37], np.float32)[:batch],
        np.array([3.5, 30.0], np.float32)[:batch] if config.guidance_embeds else None,
    )


def places(grid):
    """The published ids: text at the origin, tokens at (0, row, column)."""
    ids = np.zeros((*grid, 3), np.float32)
    ids[..., 1], ids[..., 2] = np.indices(grid)
    return {"img_ids": torch.from_numpy(ids.reshape(-1, 3)), "txt_ids": torch.zeros(TEXT, 3)}


def run_original(model, args, grid, **more):
    tokens, text, pooled, times, guidance = (None if a is None else torch.from_numpy(a) for a in args)
    with torch.no_grad():
        return model(
            hidden_states=tokens,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=times,
            guidance=guidance,
            **places(grid),
            return_dict=False,
            **more,
        )[0]


def apply(model, *args, grid):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, *args: nnx.merge(graphdef, state)(*args[:-1], grid, args[-1]))(state, *args)


def error(ours, theirs):
    """Largest difference, relative to the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


CASES = {"dev": (SMALL, GRID), "other_size": (SMALL, (2, 10)), "fill": (FILL, GRID), "unguided": (UNGUIDED, GRID)}


@pytest.mark.parametrize("case", CASES)
def test_transformer(rng, case):
    config, grid = CASES[case]
    theirs = original(config)
    ours = load(theirs, lambda: FluxTransformer(config, rngs=nnx.Rngs(0)), flux_transformer.transformer(config))
    args = inputs(rng, config, grid=grid)
    want = run_original(theirs, args, grid)
    assert error(apply(ours, *args, None, grid=grid), want) < WHOLE
    if config.guidance_embeds:
        less = (*args[:4], args[4] / 2)
        assert error(run_original(theirs, less, grid), want) > 0.01  # the guidance is heard


def test_controlnet_and_transformer(rng):
    """Four blocks serve five: two of one residual each way, and the last of the four reaches nothing."""
    theirs = original_controlnet(CONTROL), original(SMALL)
    ours = (
        load(theirs[0], lambda: FluxControlNet(CONTROL, rngs=nnx.Rngs(0)), flux_transformer.controlnet(CONTROL)),
        load(theirs[1], lambda: FluxTransformer(SMALL, rngs=nnx.Rngs(0)), flux_transformer.transformer(SMALL)),
    )
    args = inputs(rng, SMALL)
    condition = rng.normal(size=(2, GRID[0] * GRID[1], CONTROL.condition_channels)).astype(np.float32)
    samples = run_original(theirs[0], args, GRID, controlnet_cond=torch.from_numpy(condition), conditioning_scale=0.9)
    got = apply(ours[0], args[0], condition, *args[1:], jnp.float32(0.9), grid=GRID)
    assert got.shape[0] == CONTROL.used_layers == 3
    for k in range(3):
        assert error(got[k], samples[k]) < WHOLE
    want = run_original(theirs[1], args, GRID, controlnet_block_samples=list(samples))
    assert error(run_original(theirs[1], args, GRID), want) > 0.01
    assert error(apply(ours[1], *args, got, grid=GRID), want) < WHOLE


def test_packing_is_the_pipelines(rng):
    latents = rng.normal(size=(2, 6, 4, 5)).astype(np.float32)  # height, width, channels
    ours = pack(jnp.asarray(latents))
    theirs = diffusers.FluxPipeline._pack_latents(torch.from_numpy(latents).permute(0, 3, 1, 2), 2, 5, 6, 4)
    assert np.array_equal(np.asarray(ours), theirs.numpy())
    assert np.array_equal(np.asarray(unpack(ours, (3, 2))), latents)


def test_places_are_the_pipelines():
    config = FluxConfig.dev()
    embed = transformer_flux.FluxPosEmbed(10000, config.axes_dims_rope)
    ids = places((30, 45))
    theirs = embed(torch.cat([ids["txt_ids"], ids["img_ids"]]))
    for ours, table in zip(rope_table(config, TEXT, (30, 45)), theirs, strict=True):
        np.testing.assert_allclose(np.asarray(ours), table.numpy()[:, ::2], atol=1e-6)
