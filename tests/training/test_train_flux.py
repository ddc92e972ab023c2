"""The small FLUX's training: windows about holes, the loss's weights, and what its figures count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.tokens import pack
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from training import judge_flux, train_flux, train_flux_autoencoder
from training.holes import Holes
from training.pool import ImagePool

SIZES = {"num_attention_heads": 1, "num_layers": 1}
CELLS = (32, 48)


@pytest.fixture(scope="module")
def data():
    """Two pictures of latents, each with one hole of 3x4 cells."""
    rng = np.random.default_rng(0)
    known = np.ones((2, *CELLS), bool)
    known[0, 3:6, 40:44] = False
    known[1, 20:23, 2:6] = False
    latents = rng.normal(size=(2, 2, *CELLS, 16)).astype(np.float16)
    tokens = rng.normal(size=(2, 5, 128)).astype(np.float16)
    return {"picture": latents[0], "warp": latents[1], "known": known, "number": np.array([1, 1]), "tokens": tokens}


def test_every_window_shows_a_hole_and_some_lose_their_text(data):
    windows = ((8, 64, 96), (2, 128, 192))
    blank = []
    for step in range(8):
        batch = train_flux.make_batch(np.random.default_rng(step), step, data=data, windows=windows)
        size, rows, columns = windows[step % 2]
        assert batch["picture"].shape == batch["warp"].shape == (size, rows // 4, columns // 4, 16)
        assert (~batch["known"]).any((1, 2)).all()
        blank += [np.array_equal(text, data["tokens"][0]) for text in batch["text"]]
    assert 0 < np.mean(blank) < 0.5


def test_a_window_is_cut_alike_from_all_that_belongs_together(data):
    marked = data | {"warp": data["picture"] + 1, "picture": data["picture"]}
    batch = train_flux.make_batch(np.random.default_rng(1), 0, data=marked, windows=((8, 64, 96),))
    np.testing.assert_allclose(batch["warp"] - batch["picture"], 1, atol=0.01)


@pytest.mark.parametrize("where", ["holes", "known"])
def test_an_error_in_a_hole_weighs_ten_times_one_in_what_is_known(data, monkeypatch, where):
    batch = jax.tree.map(
        jnp.asarray, train_flux.make_batch(np.random.default_rng(0), 1, data=data, windows=((2, 128, 192),))
    )
    batch["picture"] = jnp.zeros_like(batch["picture"])  # the velocity is then the noise, x / t
    known = batch["known"][..., None].astype(jnp.float32)
    wrong = pack(jnp.broadcast_to(known if where == "known" else 1 - known, batch["picture"].shape))

    def predict(graphdefs, parameters, x, condition, text, t, guidance, scale):
        return pack(x / t[:, None, None, None]) + wrong

    monkeypatch.setattr(train_flux, "predict", predict)
    unused, _ = nnx.split(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    value, more = train_flux.loss({}, batch, jax.random.key(0), graphdefs=(unused, unused))
    hole, rest = 1 - known.mean(), known.mean()
    weights = {"holes": hole, "known": 0.1 * rest}
    np.testing.assert_allclose(value, weights[where] / sum(weights.values()), rtol=1e-4)
    np.testing.assert_allclose(more["in_holes"], float(where == "holes"), atol=1e-4)


def test_the_loss_teaches_both_networks(data):
    config = dataclasses.replace(FluxConfig.tiny(), **SIZES, num_single_layers=1)
    control = dataclasses.replace(ControlNetConfig.tiny(), **SIZES, base_layers=1, axes_dims_rope=config.axes_dims_rope)
    networks = [nnx.split(network) for network in train_flux.build(config, control, 0)]
    graphdefs = networks[0][0], networks[1][0]
    parameters = {"transformer": networks[0][1], "controlnet": networks[1][1]}
    drawn = train_flux.make_batch(np.random.default_rng(0), 0, data=data, windows=((2, 16, 16),))
    batch = jax.tree.map(jnp.asarray, drawn)
    both = jax.jit(jax.value_and_grad(lambda p: train_flux.loss(p, batch, jax.random.key(0), graphdefs=graphdefs)[0]))
    value, gradient = both(parameters)
    assert 1 < value < 4
    # A fresh ControlNet's last map is zero: it learns first.
    moved = {
        name: jax.tree.leaves(jax.tree.map(lambda g: float(jnp.abs(g).max()), gradient[name])) for name in gradient
    }
    assert max(moved["transformer"]) > 1e-4
    assert max(moved["controlnet"]) > 1e-5


def test_encoded_pictures_are_scaled_and_know_whole_cells_only(tmp_path):
    config = dataclasses.replace(AutoencoderConfig.tiny(), scaling_factor=2.0, shift_factor=0.5)
    network = Autoencoder(config, rngs=nnx.Rngs(0))
    checkpoints.save_model(tmp_path, network, config)
    visible = np.ones((16, 24), bool)
    visible[5, 9] = False
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    warp = np.where(visible[..., None], picture, np.uint8(0))
    (found,) = train_flux.encoded(str(tmp_path), [Holes(picture, warp, visible, "a prompt")])
    assert np.argwhere(~found.known).tolist() == [[1, 2]]
    mean, _ = network.encode(jnp.asarray(picture[None], jnp.float32) / 127.5 - 1)
    np.testing.assert_allclose(found.picture, 2 * (mean[0] - 0.5), atol=0.01)
    assert found.prompt == "a prompt"


def test_the_autoencoders_crops_and_its_figures():
    photo = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    pool = ImagePool((photo,), ("noise",), (), (), np.zeros((0, 128, 128, 4), np.uint8), ())
    side = train_flux_autoencoder.SIDE
    batch = train_flux_autoencoder.make_batch(np.random.default_rng(0), 0, pool=pool, scenes=None, size=16)
    assert batch.shape == (16, side, side, 3)
    black = (batch == 0).all(-1).mean((1, 2))
    assert 0 < (black > 0.02).sum() < 10  # some have holes, most have none
    config = dataclasses.replace(AutoencoderConfig.tiny(), block_out_channels=(8, 8))
    graphdef, parameters = nnx.split(Autoencoder(config, rngs=nnx.Rngs(0)))
    value, numbers = train_flux_autoencoder.loss(
        parameters, jnp.asarray(batch[:2]), jax.random.key(0), graphdef=graphdef
    )
    assert np.isfinite(value)
    assert numbers["psnr"] < 12  # it has learnt nothing


def test_holes_of_nine_pixels_are_wide_and_of_eight_are_not():
    visible = np.ones((60, 80), bool)
    visible[10:18, 5:40] = False  # 8 rows
    visible[30:39, 5:40] = False  # 9 rows
    visible[:, 75:] = False  # 5 columns along the rim
    expected = np.zeros((60, 80), bool)
    expected[30:39, 5:40] = True
    np.testing.assert_array_equal(judge_flux.wide_holes(visible), expected)


def test_the_report_compares_means_with_telea():
    way = {"distance": 0.2, "error": 0.01, "one_error": 0.1}
    rows = [
        {
            "telea": {"distance": d, "error": 0.1},
            "decoded": way | {"known_error": 0.001},
            "pasted": way,
            "reimposed": way,
        }
        for d in (0.3, 0.5)
    ]
    report = judge_flux.summarise(rows)
    assert report["pasted"] == {"distance": 0.2, "psnr": 20.0, "distance_change": -0.5, "psnr_of_one": 10.0}
    assert report["telea"] == {"distance": 0.4, "psnr": 10.0}
    assert report["decoded"]["psnr_of_known"] == 30.0
