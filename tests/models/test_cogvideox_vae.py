import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from manifests import manifest, table_faults
from networks import fill_randomly

from converters.tables.cogvideox_vae import TABLE
from reangle_jax import checkpoints
from reangle_jax.models.cogvideox.vae import VAE, in_chunks
from reangle_jax.models.cogvideox.vae_blocks import ResidualBlocks, SpatialNorm
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.cogvideox.vae_tiling import in_tiles, tilings_of
from reangle_jax.nn.execution import Execution

# The published structure at the smallest width, for shapes; and two resolutions only, for what has to be compiled.
WHOLE = VAEConfig(block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4)
SMALL = dataclasses.replace(WHOLE, block_out_channels=(4, 8), temporal_compression_ratio=2)


def build(config=SMALL, execution=None):
    model = checkpoints.abstract(lambda: VAE(config, execution=execution, rngs=nnx.Rngs(0)))
    fill_randomly(model)
    return nnx.split(model)


def encode(graphdef, state, video):
    return jax.jit(lambda state, video: nnx.merge(graphdef, state).encode(video))(state, video)


def clip(rng, frames, batch=1, size=8):
    return rng.uniform(-1, 1, (batch, frames, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(("frames", "latents", "back"), [(1, 1, 1), (8, 2, 8), (9, 3, 9), (49, 13, 49), (50, 13, 49)])
def test_lengths(frames, latents, back):
    vae = checkpoints.abstract(lambda: VAE(WHOLE, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(vae)

    def both(state, video):
        vae = nnx.merge(graphdef, state)
        mean, logvar = vae.encode(video)
        return mean, logvar, vae.decode(mean)

    mean, logvar, video = jax.eval_shape(both, state, jax.ShapeDtypeStruct((2, frames, 16, 24, 3), jnp.float32))
    assert mean.shape == logvar.shape == (2, latents, 2, 3, 4)
    assert video.shape == (2, back, 16, 24, 3)


@pytest.mark.parametrize(
    ("frames", "size", "chunks"),
    [
        (1, 8, [1]),
        (7, 8, [7]),
        (8, 8, [8]),
        (9, 8, [9]),
        (17, 8, [9, 8]),
        (30, 8, [14, 8, 8]),
        (1, 2, [1]),
        (5, 2, [3, 2]),
    ],
)
def test_first_chunk_takes_the_remainder(frames, size, chunks):
    """Each output frame tells its chunk's length, and how many frames came before the chunk."""

    def apply(x, before):
        before = jnp.zeros((), jnp.int32) if before is None else before
        length = jnp.full((1, x.shape[1]), x.shape[1])
        return jnp.stack([length, jnp.broadcast_to(before, length.shape), x], axis=-1), before + x.shape[1]

    lengths, before, order = np.moveaxis(np.asarray(in_chunks(apply, jnp.arange(frames)[None], size))[0], -1, 0)
    np.testing.assert_array_equal(lengths, np.repeat(chunks, chunks))
    np.testing.assert_array_equal(before, np.repeat(np.cumsum([0, *chunks[:-1]]), chunks))
    np.testing.assert_array_equal(order, np.arange(frames))


def test_later_chunks_change_nothing_before_them(rng):
    graphdef, state = build()
    video = clip(rng, 17)
    latents, _ = encode(graphdef, state, video)
    assert latents.shape[1] == 9
    video[:, 9:] *= -1
    other, _ = encode(graphdef, state, video)
    np.testing.assert_array_equal(other[:, :5], latents[:, :5])
    # The first chunk reaches the second through the convolutions' past.
    video[:, 8] *= -1
    another, _ = encode(graphdef, state, video)
    assert np.abs(another[:, 5:] - other[:, 5:]).max() > 1e-3


def test_clips_of_a_batch_do_not_mix(rng):
    graphdef, state = build()
    video = clip(rng, 3, batch=2)
    both, _ = encode(graphdef, state, video)
    mapped, _ = jax.jit(jax.vmap(nnx.merge(graphdef, state).encode))(video[:, None])
    np.testing.assert_allclose(both, mapped[:, 0], rtol=0, atol=1e-5)


def test_remat_keeps_output_and_gradient(rng):
    x = jnp.asarray(rng.normal(size=(1, 3, 4, 4, 4)), jnp.float32)
    latent = jnp.asarray(rng.normal(size=(1, 3, 2, 2, 4)), jnp.float32)
    results = []
    for remat in ("none", "full"):
        blocks = checkpoints.abstract(
            lambda remat=remat: ResidualBlocks(
                4, 8, 1, SMALL, Execution(remat=remat), norm=SpatialNorm, rngs=nnx.Rngs(0)
            )
        )
        fill_randomly(blocks)
        graphdef, state = nnx.split(blocks)

        def loss(state, x, latent, graphdef=graphdef):
            y, _ = nnx.merge(graphdef, state)(x, latent, None)
            return jnp.mean(jnp.square(y))

        assert ("remat" in str(jax.make_jaxpr(loss)(state, x, latent))) == (remat == "full")
        results.append(jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(state, x, latent))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(a).max()))


def test_sample_has_the_posteriors_moments():
    mean, logvar = jnp.full((4000,), 2.0), jnp.full((4000,), np.log(9.0), jnp.float32)
    drawn = VAE.sample(mean, logvar, key=jax.random.key(0))
    # Four standard errors of 4000 draws.
    assert abs(float(drawn.mean()) - 2.0) < 4 * 3 / 4000**0.5
    assert abs(float(drawn.std()) - 3.0) < 4 * 3 / 8000**0.5


def test_log_variance_is_clamped(rng):
    graphdef, state = build()
    paths = checkpoints.parameter_paths(state)
    bias = paths["encoder.conv_out.conv.bias"]
    bias.set_value(jnp.array([1e3] * 4 + [1e3, 1e3, -1e3, -1e3], jnp.float32))
    mean, logvar = encode(graphdef, state, clip(rng, 1))
    assert mean.min() > 500
    np.testing.assert_array_equal(np.unique(logvar[..., :2]), [20.0])
    np.testing.assert_array_equal(np.unique(logvar[..., 2:]), [-30.0])


def test_scaling():
    z = jnp.ones((2,))
    vae = checkpoints.abstract(lambda: VAE(SMALL, rngs=nnx.Rngs(0)))
    np.testing.assert_allclose(vae.scale_latents(z), 0.7)
    np.testing.assert_allclose(vae.scale_image_latents(z), 0.7)
    np.testing.assert_allclose(vae.unscale_latents(vae.scale_latents(z)), 1.0)
    newer = dataclasses.replace(SMALL, invert_scale_latents=True)
    vae = checkpoints.abstract(lambda: VAE(newer, rngs=nnx.Rngs(0)))
    np.testing.assert_allclose(vae.scale_image_latents(z), 1 / 0.7, rtol=1e-6)
    np.testing.assert_allclose(vae.scale_latents(z), 0.7)


def test_computes_in_the_dtype_asked_for(rng):
    graphdef, state = build(execution=Execution(dtype="bfloat16"))
    reference = build()
    video = clip(rng, 3)
    mean, logvar = encode(graphdef, state, video)
    assert mean.dtype == logvar.dtype == jnp.bfloat16
    expected, _ = encode(*reference, video)
    # bfloat16 rounds by up to 0.4 %, some thirty times on the way through the encoder: 2 % was measured, whichever form
    # the convolutions have.
    error = np.abs(mean.astype(jnp.float32) - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.05


def test_published_checkpoint_fits():
    published = manifest("cogvideox-5b-i2v.vae")
    model = checkpoints.abstract(lambda: VAE(VAEConfig(), rngs=nnx.Rngs(0)))
    paths = checkpoints.parameter_paths(model)
    targets = {path: tuple(variable.shape) for path, variable in paths.items()}
    assert table_faults(published["tensors"], TABLE, targets) == []
    assert sum(int(np.prod(shape)) for shape in targets.values()) == published["parameters"] == 215_583_907
    assert {str(variable.dtype) for variable in paths.values()} == {"float32"}


def test_published_config_fits():
    published = manifest("cogvideox-5b-i2v.vae")["config"]
    config = VAEConfig()
    for name in (
        "layers_per_block",
        "latent_channels",
        "in_channels",
        "norm_num_groups",
        "temporal_compression_ratio",
        "sample_height",
        "sample_width",
        "scaling_factor",
    ):
        assert getattr(config, name) == published[name], name
    assert list(config.block_out_channels) == published["block_out_channels"]


def test_compression_of_the_small_one_and_of_the_published_one():
    tiny, full = VAEConfig.tiny(), VAEConfig()
    assert (tiny.spatial_compression_ratio, full.spatial_compression_ratio) == (4, 8)
    assert tiny.temporal_compression_ratio == full.temporal_compression_ratio == 4
    assert (tiny.latent_channels, full.latent_channels) == (12, 16)


def test_config_survives_a_weights_folder(tmp_path):
    model = checkpoints.abstract(lambda: VAE(SMALL, rngs=nnx.Rngs(0)))
    fill_randomly(model)
    checkpoints.save_model(tmp_path, model, SMALL)
    assert checkpoints.load_config(tmp_path, VAEConfig) == SMALL
    loaded = checkpoints.load_into(checkpoints.abstract(lambda: VAE(SMALL, rngs=nnx.Rngs(1))), tmp_path)
    for path, variable in checkpoints.parameter_paths(model).items():
        np.testing.assert_array_equal(checkpoints.parameter_paths(loaded)[path][...], variable[...])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_num_groups": 3}, "norm_num_groups 3 does not divide"),
        ({"temporal_compression_ratio": 3}, "temporal_compression_ratio 3 is not a power of two"),
        ({"temporal_compression_ratio": 4}, "temporal_compression_ratio 4 is not a power of two up to 2"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("size", [(480, 720), (768, 1360), (240, 360), (248, 96)], ids=str)
def test_tiles_cover_the_published_sizes_with_four_programs_at_most(size):
    config = VAEConfig().tiled()
    vae = checkpoints.abstract(
        lambda: VAE(dataclasses.replace(WHOLE, tile_sample=config.tile_sample), rngs=nnx.Rngs(0))
    )
    graphdef, state = nnx.split(vae)
    back = jax.eval_shape(
        lambda state, video: nnx.merge(graphdef, state).decode(nnx.merge(graphdef, state).encode(video)[0]),
        state,
        jax.ShapeDtypeStruct((1, 1, *size, 3), jnp.float32),
    )
    assert back.shape == (1, 1, *size, 3)
    for tilings, cells in (
        (tilings_of(config, encode=True), size),
        (tilings_of(config, encode=False), (size[0] // 8, size[1] // 8)),
    ):
        lengths = [{length for _, length in t.spans(n)} for t, n in zip(tilings, cells, strict=True)]
        assert len(lengths[0]) * len(lengths[1]) <= 4


def test_a_coder_that_does_not_look_at_its_neighbours_is_not_changed_by_tiles(rng):
    """Overlapping tiles of one function of each cell agree where they overlap, whatever the blend's weights."""
    tilings = tilings_of(dataclasses.replace(SMALL, tile_sample=(48, 40)).tiled((48, 40)), encode=True)
    x = jnp.asarray(rng.uniform(-1, 1, (1, 2, 100, 76, 3)), jnp.float32)

    def halve(x):
        return jnp.tanh(x[:, :, ::2, ::2])

    got = jax.jit(lambda x: in_tiles(halve, x, tilings))(x)
    # The two shares of a blend add up to 1 to one unit in the last place.
    np.testing.assert_allclose(got, halve(x), atol=2e-7)


@pytest.mark.parametrize(
    ("tile", "overlap"), [((44, 40), (1 / 6, 1 / 5)), ((48, 40), (1 / 5, 1 / 5)), ((8, 8), (0.9, 0))]
)
def test_tiles_that_are_not_whole_latents_are_refused(tile, overlap):
    with pytest.raises(ValueError, match="do not fall on whole latents"):
        WHOLE.tiled(tile, overlap)
