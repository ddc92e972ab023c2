"""FLUX as a painter, with very small random networks: against its loops written out, and what it holds to."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.diffusion import flow
from reangle_jax.errors import InputError
from reangle_jax.models.flux.tokens import pack, unpack
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.needs import Shares
from reangle_jax.painters import registry
from reangle_jax.painters.flux import conditions, needs
from reangle_jax.painters.flux.networks import Text
from reangle_jax.painters.flux.painter import FluxPainter
from reangle_jax.painters.interface import Editing, Painting, Reward
from tests.painters import flux_networks
from tests.painters.flux_networks import GRID, SIZE

KEY = jax.random.key(5)
HOW = Painting(
    steps=5,
    guidance_scale=3.5,
    control_scale=0.9,
    candidates=3,
    eta=1.0,
    noise="ddim",
    window=(0.0, 1.0),
    every=1,
    reimpose=False,
)
TOKENS = GRID[0] * GRID[1]


def redness(target, images):
    """How near the red is to something; a second column weighs less."""
    return jnp.stack([-jnp.abs(images[..., 0].mean((1, 2)) - target), 0.1 * images[..., 1].mean((1, 2))], axis=1)


REWARD = Reward(redness, jnp.float32(0.3))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The painter, its networks and the text of one prompt."""
    painter = flux_networks.painter(flux_networks.write_weights(tmp_path_factory.mktemp("flux")))
    return painter, painter.load(), painter.embed(["waves"])


def paint(small, how=HOW, reward=REWARD, steps=None, **options):
    painter, networks, text = small
    seen = []

    def on_step(saved, chosen):
        seen.append((saved, chosen))
        if len(seen) == steps:
            raise KeyboardInterrupt

    try:
        made = painter.paint(
            networks, text, *flux_networks.picture(), how, key=KEY, reward=reward, on_step=on_step, **options
        )
    except KeyboardInterrupt:
        made = None
    return made, seen


def models(small):
    painter, parameters, _ = small
    return {role: nnx.merge(found.graphdef, getattr(parameters, role)) for role, found in painter.networks.items()}


def decoded(vae, latents):
    return jax.jit(lambda x: jnp.clip(vae.decode(vae.unscale_latents(x)) / 2 + 0.5, 0, 1)[0])(latents)


def test_naive_painting_is_the_pipeline_written_out(small):
    how = HOW._replace(candidates=1)
    made, seen = paint(small, how)
    networks, text = models(small), small[2]

    @jax.jit  # one program is built sooner than each operation by itself
    def velocity(x, now):
        shared = (jnp.asarray(text.tokens), jnp.asarray(text.pooled), now[None], guidance, GRID)
        return networks["transformer"](x, *shared, networks["controlnet"](x, condition, *shared, 0.9))

    picture, visible = flux_networks.picture()
    start, _, _ = jax.random.split(KEY, 3)
    vae, guidance = networks["vae"], jnp.array([3.5])
    holed = jnp.where(visible[..., None], picture / np.float32(127.5) - 1, -1.0)[None]
    condition = jax.jit(lambda: conditions.control_condition(vae, holed, jnp.asarray(visible)[None], key=None))()
    times = flow.times(5, TOKENS)
    x = pack(jax.random.normal(start, (8, 12, 4))[None])
    for now, after in itertools.pairwise(times):
        x = x + np.float32(after - now) * velocity(x, jnp.float32(now))
    expected = decoded(vae, unpack(x, GRID))
    # One program against one operation after the other.
    np.testing.assert_allclose(made, expected, atol=2e-5)
    assert made.shape == (*SIZE, 3)
    assert made.std() > 0.02
    assert [chosen for _, chosen in seen] == [None] * 5
    other, _ = paint(small, how, reward=None)
    np.testing.assert_array_equal(made, other)


def test_the_condition_and_its_scale_matter(small):
    base, _ = paint(small, HOW._replace(candidates=1))
    for change in ({"control_scale": 0.0}, {"guidance_scale": 1.0}, {"steps": 4}):
        assert np.abs(paint(small, HOW._replace(candidates=1, **change))[0] - base).max() > 1e-3


@pytest.mark.parametrize("reimpose", [False, True])
def test_what_holes_are_filled_with_is_shown_if_it_is_said_and_not_without(small, monkeypatch, reimpose):
    picture, visible = flux_networks.picture()
    how = HOW._replace(candidates=1, reimpose=reimpose)
    made = {}
    for colour in (40, 200):
        filled = np.where(visible[..., None], picture, np.uint8(colour))
        monkeypatch.setattr(flux_networks, "picture", lambda filled=filled: (filled, visible))
        made[colour] = [paint(small, how._replace(infill=infill))[0] for infill in (False, True)]
    np.testing.assert_array_equal(made[40][0], made[200][0])
    assert np.abs(made[40][1] - made[200][1]).max() > 1e-3


def test_painting_that_begins_at_the_noised_filling_is_written_out(small):
    strength = 0.6
    made, _ = paint(small, HOW._replace(candidates=1, infill=True, strength=strength))
    networks, text = models(small), small[2]
    picture, visible = flux_networks.picture()
    vae, unit = networks["vae"], jnp.asarray(picture / np.float32(127.5) - 1)[None]
    condition = jax.jit(
        lambda: conditions.control_condition(vae, unit, jnp.asarray(visible)[None], key=None, filled=True)
    )()
    latents = jax.jit(lambda: conditions.picture_latents(vae, unit))()

    @jax.jit
    def velocity(x, now):
        shared = (jnp.asarray(text.tokens), jnp.asarray(text.pooled), now[None], jnp.array([3.5]), GRID)
        return networks["transformer"](x, *shared, networks["controlnet"](x, condition, *shared, 0.9))

    noise = jax.random.normal(jax.random.split(KEY, 3)[0], (8, 12, 4))[None]
    x = pack((1 - strength) * latents + strength * noise)
    for now, after in itertools.pairwise(strength * flow.times(5, TOKENS)):
        x = x + np.float32(after - now) * velocity(x, jnp.float32(now))
    np.testing.assert_allclose(made, decoded(vae, unpack(x, GRID)), atol=2e-5)


def test_candidates_raise_the_reward(small):
    plain, _ = paint(small, HOW._replace(candidates=1))
    made, seen = paint(small, HOW._replace(candidates=6))
    tables = [(chosen.step, chosen.scores.shape) for _, chosen in seen if chosen]
    assert tables == [(step, (6, 2)) for step in range(3)]  # not in the last two
    for _, chosen in seen[:3]:
        assert chosen.kept == chosen.scores.sum(axis=1).argmax()
    scores = [float(redness(REWARD.arguments, jnp.asarray(image)[None]).sum()) for image in (made, plain)]
    assert scores[0] > scores[1]


def test_one_program_serves_all_pictures_steps_and_finished_views(small):
    paint(small)
    made = small[0]._control
    before = [f._cache_size() for f in (made._round, made._move, made._evaluate)]
    paint(small, HOW._replace(candidates=2, steps=4, eta=0.5, guidance_scale=2.0), Reward(redness, jnp.float32(0.8)))
    assert [f._cache_size() for f in (made._round, made._move, made._evaluate)] == before


def test_a_killed_painting_goes_on_to_the_same_bytes(small):
    made, seen = paint(small)
    _, before = paint(small, steps=2)
    saved = {name: np.array(value) for name, value in before[-1][0].items()}  # as files.load_npz gives it
    again, after = paint(small, saved=saved)
    np.testing.assert_array_equal(again, made)
    assert len(before + after) == len(seen)


def test_what_is_known_is_put_back_at_every_step(small):
    _, seen = paint(small, HOW._replace(reimpose=True, candidates=1))
    picture, visible = flux_networks.picture()
    vae = models(small)["vae"]
    known = np.asarray(conditions.known_cells(jnp.asarray(visible)[None], 2))[0]
    assert 0.3 < known.mean() < 0.8
    grey = jnp.where(visible[..., None], picture / np.float32(127.5) - 1, 0.0)[None]
    latents = np.asarray(jax.jit(lambda: conditions.picture_latents(vae, grey))())[0]
    noise = np.asarray(jax.random.normal(jax.random.split(KEY, 3)[0], (8, 12, 4)))
    times = flow.times(5, TOKENS)
    for (saved, _), t in zip(seen, times[1:], strict=True):
        np.testing.assert_allclose(saved["state"][known], ((1 - t) * latents + t * noise)[known], atol=1e-5)
        assert np.abs(saved["state"] - ((1 - t) * latents + t * noise))[~known].max() > 1e-2


def test_an_edit_is_flowedit_written_out(small):
    painter = small[0]
    parameters = painter.load(to_edit=True)
    assert parameters.controlnet is None  # it has no use for it
    text = painter.embed(["waves", "red waves"])
    picture, _ = flux_networks.picture()
    how, steps = Editing(steps=5, skip=2, guidance_scale=5.5, source_guidance_scale=1.5), []
    made = painter.edit(parameters, text, picture, how, key=KEY, on_step=lambda: steps.append(1))
    assert len(steps) == 3
    networks, times = models(small), flow.times(5, TOKENS)
    vae = networks["vae"]
    unit = jnp.asarray(picture / np.float32(127.5) - 1)[None]
    source = jax.jit(lambda: vae.scale_latents(vae.encode(unit)[0]))()

    @jax.jit
    def velocity(x, t, which, guidance):
        words = (jnp.asarray(text.tokens)[which][None], jnp.asarray(text.pooled)[which][None])
        return unpack(networks["transformer"](pack(x), *words, t[None], guidance[None], GRID), GRID)

    z = source
    for index in range(2, 5):
        t, after = map(jnp.float32, times[index : index + 2])
        noised = (1 - t) * source + t * jax.random.normal(jax.random.fold_in(KEY, index), source.shape[1:])[None]
        target = velocity(z + noised - source, t, jnp.int32(1), jnp.float32(5.5))
        z = z + (after - t) * (target - velocity(noised, t, jnp.int32(0), jnp.float32(1.5)))
    expected = decoded(vae, z)
    np.testing.assert_allclose(made, expected, atol=2e-5)
    assert np.abs(np.asarray(z - source)).max() > 1e-2


def test_fill_is_told_of_the_holes_beside_its_latents(tmp_path, small):
    folder = flux_networks.write_weights(tmp_path, flux_networks.FILL_PARTS)
    painter = flux_networks.painter(folder, "flux.1-fill-dev", flux_networks.FILL_PARTS)
    parameters, text = painter.load(), small[2]
    assert parameters.controlnet is None
    made, _ = paint((painter, parameters, text), HOW._replace(candidates=1))
    networks = models((painter, parameters, text))
    picture, visible = flux_networks.picture()
    start, draw, _ = jax.random.split(KEY, 3)
    unit = jnp.asarray(picture / np.float32(127.5) - 1)[None]
    vae = networks["vae"]
    told = jax.jit(lambda: conditions.fill_condition(vae, unit, jnp.asarray(visible)[None], key=draw))()

    @jax.jit
    def velocity(x, now):
        shared = (jnp.asarray(text.tokens), jnp.asarray(text.pooled), now[None], jnp.array([3.5]), GRID)
        return networks["transformer"](jnp.concatenate([x, told], axis=-1), *shared)

    times = flow.times(5, TOKENS)
    x = pack(jax.random.normal(start, (8, 12, 4))[None])
    for now, after in itertools.pairwise(times):
        x = x + np.float32(after - now) * velocity(x, jnp.float32(now))
    expected = decoded(vae, unpack(x, GRID))
    np.testing.assert_allclose(made, expected, atol=2e-5)
    with pytest.raises(InputError, match="only fills holes"):
        painter.edit(parameters, text, picture, Editing(2, 0, 1.0, 1.0), key=KEY, on_step=lambda: None)


def test_weights_of_another_flux_are_refused(tmp_path):
    folders = {part: tmp_path / part for part in registry.ENTRIES["flux.1-dev"].parts}
    dev, fill = (FluxPainter(name, folders, SIZE) for name in ("flux.1-dev", "flux.1-fill-dev"))
    fields = {
        name: dataclasses.asdict(make()) for name, make in (("dev", FluxConfig.dev), ("fill", FluxConfig.fill_dev))
    }
    dev.check("transformer", fields["dev"])
    fill.check("transformer", fields["fill"])
    dev.check("vae", {})
    for painter, other in ((dev, "fill"), (fill, "dev")):
        with pytest.raises(InputError, match=f"another model than {painter.name}.*first_frames.model") as caught:
            painter.check("transformer", fields[other])
        assert "\n" not in str(caught.value)


def test_the_registry_names_the_classes_that_are_written(small):
    for name, parts in (("tiny", flux_networks.PARTS), ("flux.1-fill-dev", flux_networks.FILL_PARTS)):
        for part, (_, config) in parts.items():
            assert registry.ENTRIES[name].parts[part] == type(config).__name__
    assert registry.ENTRIES["flux.1-dev"].load() is FluxPainter


FULL = Painting(50, 3.5, 0.9, 25, 1.0, "ddim", (0.0, 1.0), 1, False)


def test_what_an_evaluation_takes():
    tokens = {"480x720": 30 * 45, "768x1152": 48 * 72, "1024^2": 64 * 64}
    counted = {"480x720": 29.4e12, "768x1152": 69.2e12, "1024^2": 82.7e12}
    whole = dataclasses.replace(ControlNetConfig.inpainting_beta(), base_layers=6)  # all six blocks
    for size, count in tokens.items():
        assert needs.flops(FluxConfig.dev(), whole, count, 512) == pytest.approx(counted[size], rel=0.01)
    used = needs.flops(FluxConfig.dev(), ControlNetConfig.inpainting_beta(), 1350, 512)
    assert 0.975 < used / 29.4e12 < 0.99


def test_25_candidates_at_full_size_fit_80_gb(monkeypatch):
    found = FluxPainter("flux.1-dev", {}, (480, 720)).needs(FULL, Editing(28, 4, 5.5, 1.5))
    paint = found["first_frames"]
    assert 28e9 < paint.peak_bytes < 35e9  # 23.8 GB of transformer, 4.3 of ControlNet
    assert paint.phases["text"] == pytest.approx(2 * 4_762_310_656, rel=1e-3)
    # 1 + 48 x 25 + 1 evaluations, and the decoder as often.
    assert paint.flops == pytest.approx(1202 * 28.9e12 + 1201 * 3.0e12, rel=0.06)
    assert found["first_warps"].flops == pytest.approx(48 * 26.5e12, rel=0.02)
    assert 4e9 < paint.peak_bytes - found["first_warps"].peak_bytes < 4.5e9  # the ControlNet
    falling = needs.planned(FULL._replace(fewest=5), 1350)
    assert falling.candidates[0] == 25
    assert falling.candidates[47] == 5
    assert falling.evaluations == 1 + sum(range(25, 4, -1)) * 48 // 21 + 1
    one = FluxPainter("flux.1-dev", {}, (480, 720)).needs(FULL._replace(candidates=1), Editing(28, 4, 5.5, 1.5))
    assert one["first_frames"].flops == pytest.approx(50 * 28.9e12, rel=0.01)
    fill = FluxPainter("flux.1-fill-dev", {}, (480, 720)).needs(FULL, Editing(28, 4, 5.5, 1.5))
    assert fill["first_frames"].peak_bytes < paint.peak_bytes
    assert "first_warps" not in fill  # it cannot edit
    # Of devices that divide a picture each has a share of all parameters but the autoencoder's: as compiled for H100s.
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    shared = FluxPainter("flux.1-dev", {}, (480, 720)).needs(FULL, Editing(28, 4, 5.5, 1.5), Shares(rows=8))
    assert shared["first_frames"].peak_bytes / 2**30 == pytest.approx(6.15, rel=0.08)
    assert shared["first_frames"].flops == paint.flops


def test_text_is_embedded_as_tokens_and_as_a_whole(small):
    text = small[0].embed(["waves", "a wall", "waves"])
    assert isinstance(text, Text)
    assert text.tokens.shape == (3, 48, 16)
    assert text.pooled.shape == (3, 16)
    np.testing.assert_array_equal(text.pooled[0], text.pooled[2])
    np.testing.assert_allclose(text.pooled[1], text.tokens[1].mean(axis=0), atol=1e-6)  # as the small family is trained
    assert np.abs(text.pooled[0] - text.pooled[1]).max() > 1e-3
