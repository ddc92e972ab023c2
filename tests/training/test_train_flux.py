"""The small FLUX's training: windows about holes, the loss's weights, and what its figures count."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax.models.dino import FeatUp, FeatUpConfig
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.tokens import pack
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from training import flux_look, judge_flux, train_flux, train_flux_autoencoder
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
    visible = known.repeat(4, 1).repeat(4, 2)
    pixels = rng.integers(0, 256, (2, 2, *visible.shape[1:], 3), np.uint8)
    return {
        "picture": latents[0],
        "warp": latents[1],
        "known": known,
        "truth": pixels[0],
        "shown": np.where(visible[..., None], pixels[0], pixels[1]),
        "visible": visible,
        "number": np.array([1, 1]),
        "tokens": tokens,
    }


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
    np.testing.assert_array_equal(batch["visible"], batch["known"].repeat(4, 1).repeat(4, 2))
    np.testing.assert_array_equal(batch["truth"][batch["visible"]], batch["shown"][batch["visible"]])
    assert batch["truth"].shape == (8, 64, 96, 3)


@pytest.mark.parametrize("where", ["holes", "known"])
def test_an_error_in_a_hole_weighs_ten_times_one_in_what_is_known(data, monkeypatch, where):
    batch = jax.tree.map(
        jnp.asarray, train_flux.make_batch(np.random.default_rng(0), 1, data=data, windows=((2, 128, 192),))
    )
    batch["picture"] = jnp.zeros_like(batch["picture"])  # the way there is then x / t
    known = batch["known"][..., None].astype(jnp.float32)
    wrong = pack(jnp.broadcast_to(known if where == "known" else 1 - known, batch["picture"].shape))

    def predict(graphdefs, parameters, x, condition, text, t, guidance, scale):
        at = t[:, None, None, None]
        return pack(x / at) + wrong[: len(x)] / at[..., 0]  # an error of 1 of the clean estimate

    monkeypatch.setattr(train_flux, "predict", predict)
    unused, _ = nnx.split(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    value, more = train_flux.loss({}, batch, jax.random.key(0), graphdefs=(unused, unused))
    hole, rest = 1 - known.mean(), known.mean()
    weights = {"holes": hole, "known": 0.1 * rest}
    np.testing.assert_allclose(value, weights[where] / sum(weights.values()), rtol=1e-4)
    for name in ("in_holes", "in_holes_later"):
        np.testing.assert_allclose(more[name], float(where == "holes"), atol=1e-4)


def test_later_steps_begin_on_the_way_from_where_painting_begins_to_what_was_found(data, monkeypatch):
    drawn = train_flux.make_batch(np.random.default_rng(0), 1, data=data, windows=((2, 128, 192),))
    batch, seen = jax.tree.map(jnp.asarray, drawn), []

    def predict(graphdefs, parameters, x, condition, text, t, guidance, scale):
        seen.append((x, t))
        return pack((x - 0.25) / t[:, None, None, None])  # it finds 0.25 everywhere

    monkeypatch.setattr(train_flux, "predict", predict)
    unused, _ = nnx.split(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    train_flux.loss({}, batch, jax.random.key(0), graphdefs=(unused, unused))
    (begin, first), (later, then) = seen
    np.testing.assert_array_equal(first, np.full(2, train_flux.STRENGTH, np.float32))
    assert len(then) == 1
    share = float(then[0]) / train_flux.STRENGTH
    assert train_flux.LATER[0] <= share <= train_flux.LATER[1]
    np.testing.assert_allclose(later, 0.25 + share * (begin[:1] - 0.25), atol=1e-6)


def test_a_narrow_hole_counts_a_quarter_of_a_wide_one(data):
    truth = jnp.zeros((1, 128, 192, 3), jnp.uint8)

    def pixels(wrong):
        visible = np.ones((1, 128, 192), bool)
        visible[0, 8:24, 8:24] = visible[0, 40:104, 80:84] = False  # as many pixels: 16x16, 64x4
        latents = np.full((1, *CELLS, 16), -1, np.float32)
        latents[0][wrong] = 0
        batch = {"truth": truth, "shown": truth, "visible": jnp.asarray(visible)}
        (seen,) = flux_look.looked_at(small_look(), [jnp.asarray(latents)], batch)
        return np.exp(2 * float(seen["pixels"])) - flux_look.FLOOR  # the mean square

    assert pixels(np.s_[2:6, 2:6]) == pytest.approx(4 * pixels(np.s_[10:26, 20:21]), rel=1e-3)


@pytest.mark.parametrize("width", [8, 9])
def test_the_training_and_the_judge_call_the_same_holes_wide(width):
    visible = np.random.default_rng(0).random((2, 40, 60)) < 0.02
    visible[:, 5 : 5 + width, 10:30] = visible[:, 20:, 50:] = False
    visible[:, 5 + width, 10:30] = visible[:, 4, 10:30] = True
    ours = np.asarray(flux_look.opened(jnp.asarray(~visible, jnp.float32)))
    np.testing.assert_array_equal(ours > 0, [judge_flux.wide_holes(x) for x in visible])


class Flat(nnx.Module):
    """Decodes a cell to the colour that its first three channels are."""

    config = AutoencoderConfig.tiny()

    def unscale_latents(self, latents):
        return latents

    def decode(self, latents):
        return jnp.repeat(jnp.repeat(latents[..., :3], 4, 1), 4, 2)


def small_look():
    describer = FeatUp(FeatUpConfig(width=8, depth=1, heads=1, patch_size=8, native_grid=4, stages=1), rngs=nnx.Rngs(0))
    return flux_look.Look(nnx.split(Flat()), nnx.split(describer))


def test_paintings_are_looked_at_in_their_holes_alone(data):
    look = small_look()
    cells = np.random.default_rng(0).uniform(-0.8, 0.8, (2, *CELLS, 16)).astype(np.float32)
    truth = np.round((cells[..., :3] + 1) * 127.5).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    batch = jax.tree.map(jnp.asarray, {"truth": truth, "shown": truth, "visible": data["visible"]})
    seen = jax.jit(lambda latents: flux_look.looked_at(look, [latents], batch)[0])
    hole = ~data["known"][..., None]
    exact, elsewhere, wrong = (seen(jnp.asarray(x)) for x in (cells, np.where(hole, cells, 0.3), cells + 0.1 * hole))
    for found in (exact, elsewhere):
        assert np.exp(found["pixels"]) < 0.011  # colours are rounded to bytes, and the floor is 0.01
        assert found["features"] < 0.005
    assert np.exp(float(wrong["pixels"])) == pytest.approx(0.1, abs=0.005)
    far = seen(jnp.asarray(np.where(hole, -cells, cells)))
    assert far["features"] > 10 * max(float(exact["features"]), 1e-4)


def test_what_repeats_from_token_to_token_is_told_from_what_does_not():
    rng = np.random.default_rng(0)
    weight = np.zeros((1, 64, 96), np.float32)
    weight[:, 5:60, 10:80] = 1
    token = rng.normal(size=(8, 8, 3)).astype(np.float32)
    token -= token.mean((0, 1))
    pattern = np.tile(token, (8, 12, 1))[None]
    noise = rng.normal(size=(1, 64, 96, 3)).astype(np.float32)
    ramp = np.broadcast_to(np.linspace(0, 3, 96, dtype=np.float32)[None, None, :, None], noise.shape)
    found = {
        name: float(jax.jit(flux_look.repeated, static_argnums=2)(x * weight[..., None], weight, 8)[0])
        for name, x in {"pattern": pattern, "noise": noise, "ramp": ramp, "both": 0.5 * pattern + noise}.items()
    }
    # At the weights' border what is finer than a token is not the pattern alone.
    assert found["pattern"] == pytest.approx(np.square(token).mean(), rel=0.1)
    assert abs(found["noise"]) < 0.02
    assert found["ramp"] < 0.1
    assert found["both"] == pytest.approx(0.25 * found["pattern"], rel=0.15)


def test_features_are_taken_on_other_grids_too(data):
    look = small_look()
    batch = jax.tree.map(jnp.asarray, {name: data[name] for name in flux_look.PIXELS})
    latents = jnp.asarray(data["picture"].astype(np.float32) * 0.3)
    seen = jax.jit(lambda shift: flux_look.looked_at(look, [latents], batch, shift)[0])
    still, other = (seen(jnp.array(shift)) for shift in ((0, 0), (3, 5)))
    assert float(other["pixels"]) == float(still["pixels"])
    assert float(other["features"]) != float(still["features"])


@pytest.mark.parametrize("looked", [False, True])
def test_the_loss_teaches_both_networks(data, looked):
    config = dataclasses.replace(FluxConfig.tiny(), **SIZES, num_single_layers=1)
    control = dataclasses.replace(ControlNetConfig.tiny(), **SIZES, base_layers=1, axes_dims_rope=config.axes_dims_rope)
    networks = [nnx.split(network) for network in train_flux.build(config, control, 0)]
    graphdefs = networks[0][0], networks[1][0]
    parameters = {"transformer": networks[0][1], "controlnet": networks[1][1]}
    drawn = train_flux.make_batch(np.random.default_rng(0), 0, data=data, windows=((2, 16, 16),))
    batch = jax.tree.map(jnp.asarray, drawn)
    rest = {"graphdefs": graphdefs, "look": small_look() if looked else None}

    def value_of(p):
        return train_flux.loss(p, batch, jax.random.key(0), **rest)

    (value, more), gradient = jax.jit(jax.value_and_grad(value_of, has_aux=True))(parameters)
    if looked:
        weights = {
            "pixels": train_flux.PIXEL_WEIGHT,
            "features": train_flux.FEATURE_WEIGHT,
            "repeats": train_flux.REPEAT_WEIGHT,
        }
        # Of two pictures one is seen later too.
        added = {name: w * (2 * more[name] + more[f"{name}_later"]) / 3 for name, w in weights.items()}
        assert all(abs(x) > 0.005 for x in added.values())
        value = (value - sum(added.values())) / train_flux.LATENT_WEIGHT
    # An untrained velocity is 0: what is missed is (1 - s) warp + s eps - z, all of unit variance.
    s = train_flux.STRENGTH
    assert value == pytest.approx((1 - s) ** 2 + s**2 + 1, rel=0.25)
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
    filled = cv2.inpaint(warp, (~visible).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    assert (filled != warp).any()
    for name, pixels in (("picture", picture), ("warp", filled)):
        mean, _ = network.encode(jnp.asarray(pixels[None], jnp.float32) / 127.5 - 1)
        np.testing.assert_allclose(getattr(found, name), 2 * (mean[0] - 0.5), atol=0.01)
    np.testing.assert_array_equal(found.shown, filled)
    np.testing.assert_array_equal(found.truth, picture)
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
