"""MEt3R from two pictures to a number, against PyTorch on random weights: every step is here once more.

Point maps are mini_dust3r's and features transformers' ViT and FeatUp's arithmetic, as in the networks' own tests. The
focal length, the rendering (one disc after another, from front to back) and the cosine follow arXiv 2501.06336.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from converters.tables import dino as dino_tables
from converters.tables import featup as featup_tables
from reangle_jax.models.dino import FeatUp, FeatUpConfig
from reangle_jax.nn.colours import IMAGENET_MEAN, IMAGENET_STD
from reangle_jax.scoring import met3r
from tests.parity import test_dino as dino_forms
from tests.parity import test_dust3r as dust3r_forms
from tests.parity.test_dino import original, tensors  # noqa: F401  (fixtures)
from tests.parity.test_dust3r import linear  # noqa: F401  (fixture)

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*torch.cuda.amp:FutureWarning")]
torch = pytest.importorskip("torch")
functional = pytest.importorskip("torch.nn.functional")

HEIGHT, WIDTH = 64, 80  # 4x5 tokens: positions are interpolated
# Discs of a bit more than a pixel: most pixels are covered by several, of both images.
RADIUS, SLOTS = 0.04, 10
# Points differ by 2e-5 and features by 1e-4 of their size (the networks' own tests); a pixel mixes up to ten points,
# and a cosine divides by what is left of them.
SIMILARITY = 5e-4


@pytest.fixture(scope="module")
def geometry(linear):  # noqa: F811
    """Points before the camera, as far as random weights go."""
    with torch.no_grad():
        for head in (linear.downstream_head1, linear.downstream_head2):
            head.proj.bias.view(4, -1)[2] += 2.0
    return linear


def point_maps(model, first, second):
    """Both images' points in the first one's camera, [H, W, 3]."""
    views = [{"img": 2 * x[None] - 1, "instance": [name]} for x, name in ((first, "first"), (second, "second"))]
    with torch.no_grad():
        one, other = model(*views)
    return one["pts3d"][0], other["pts3d_in_other_view"][0]


def focal_of(points):
    """In pixels, of the camera that is rendered with: 1 + f / size where the shorter side spans [-1, 1]."""
    u, v = torch.arange(WIDTH) - WIDTH / 2, torch.arange(HEIGHT) - HEIGHT / 2
    x, y, z = points.unbind(-1)
    votes = torch.cat([(u[None] * z / x).flatten(), (v[:, None] * z / y).flatten()])
    size = min(HEIGHT, WIDTH)
    return (1 + torch.nanmedian(votes) / size) * size / 2  # the lower of two middle votes


def render(points, features, focal):
    """Disc after disc, the nearest first: features [H, W, C], and whether anything is there."""
    points, features, focal = points.reshape(-1, 3).double(), features.reshape(-1, features.shape[-1]).double(), focal
    points, features, radius = points.numpy(), features.numpy(), RADIUS * min(HEIGHT, WIDTH) / 2
    image, through = np.zeros((HEIGHT, WIDTH, features.shape[1])), np.ones((HEIGHT, WIDTH))
    discs = np.zeros((HEIGHT, WIDTH), int)
    for k in np.argsort(points[:, 2], kind="stable"):
        if points[k, 2] <= 0:
            continue
        u, v = points[k, :2] / points[k, 2] * float(focal) + (WIDTH / 2, HEIGHT / 2)
        for row in range(max(0, int(v - radius) - 1), min(HEIGHT, int(v + radius) + 2)):
            for column in range(max(0, int(u - radius) - 1), min(WIDTH, int(u + radius) + 2)):
                squared = (column + 0.5 - u) ** 2 + (row + 0.5 - v) ** 2
                if squared < radius**2 and discs[row, column] < SLOTS:
                    opacity = 1 - squared / radius**2
                    image[row, column] += through[row, column] * opacity * features[k]
                    through[row, column] *= 1 - opacity
                    discs[row, column] += 1
    return torch.from_numpy(image), torch.from_numpy(discs > 0)


def similarity_map(model, images, features):
    """Cosine at each pixel of the first image's camera, and where it is defined."""
    points = point_maps(model, *images)
    focal = focal_of(points[0])
    rendered, covered = zip(*(render(p, f, focal) for p, f in zip(points, features, strict=True)), strict=True)
    return functional.cosine_similarity(*rendered, dim=-1, eps=1e-8).numpy(), (covered[0] & covered[1]).numpy()


def features_in_torch(kind, vit, weights, image):
    """Of every pixel, [H, W, C]."""
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        tokens = vit(((image - mean) / std)[None], interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        width = tokens.shape[-1]
        if kind == "featup":
            norm = weights["model.1.norm.weight"], weights["model.1.norm.bias"]
            tokens = functional.layer_norm(tokens, (width,), *norm, eps=1e-5)
        grid = tokens.transpose(1, 2).reshape(1, width, HEIGHT // 16, WIDTH // 16)
        if kind == "featup":
            large = dino_forms.stack_in_torch(weights, grid, image[None], 4, 3)
        else:
            large = functional.interpolate(grid, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    return large[0].permute(1, 2, 0)


@pytest.mark.parametrize("kind", ["featup", "dino"])
def test_the_whole_pipeline(geometry, original, tensors, monkeypatch, kind):  # noqa: F811
    module = dino_forms.transformers.models.vit.modeling_vit.ViTEmbeddings
    monkeypatch.setattr(module, "interpolate_pos_encoding", dino_forms.authors_positions)
    config = FeatUpConfig(**dataclasses.asdict(dino_forms.CONFIG), key_width=8, stages=4)
    published = dino_forms.featup_tensors(config, dino_forms.as_pth(tensors))
    torch.manual_seed(3)
    small = torch.rand(2, 3, 6, 7)
    images = functional.interpolate(small, (HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)

    described = [features_in_torch(kind, original, published, image) for image in images]
    ways = [similarity_map(geometry, (images[i], images[1 - i]), (described[i], described[1 - i])) for i in (0, 1)]
    want = 1 - np.mean([similarity[overlap].mean() for similarity, overlap in ways])

    if kind == "featup":
        arrays = {name: array.numpy() for name, array in published.items()}
        build = lambda: FeatUp(config, rngs=nnx.Rngs(0))  # noqa: E731
        semantics = dino_forms.build(build, arrays, featup_tables.table(config))
    else:
        semantics = dino_forms.build_vit(tensors, dino_tables.hf())
    points = dust3r_forms.build(dust3r_forms.tensors_of(geometry), dust3r_forms.LINEAR)
    (g1, s1), (g2, s2) = nnx.split(points), nnx.split(semantics)
    metric = met3r.Met3r(g1, g2, radius=RADIUS)

    @jax.jit
    def score(states, images):
        first, second = (metric.describe(states, image[None]) for image in images)
        found = metric.both_ways(states, first, second)
        return found, met3r.summarise(*found)

    found, got = score((s1, s2), jnp.asarray(images.permute(0, 2, 3, 1).numpy()))
    moved = 0.0
    for way, (similarity, overlap) in zip(found, ways, strict=True):
        mine, both = np.asarray(way.overlap[0]), np.asarray(way.overlap[0]) & overlap
        assert both.mean() > 0.3
        # A disc's rim, or which of two points is nearer, may fall aside by round-off.
        assert (mine != overlap).mean() < 1e-3
        off = np.abs(np.asarray(way.similarity[0]) - similarity)[both] > SIMILARITY
        assert off.mean() < 1e-3
        moved += 2 * (off.sum() + (mine != overlap).sum()) / both.sum()
    assert 0.05 < want < 1.95
    # Each pixel that fell aside moves its way's mean by 2 / count at most.
    assert float(got.met3r[0]) == pytest.approx(want, abs=1e-5 + moved / 2)


def test_pictures_for_other_patches():
    """Resized for a feature network of patches of 14: one side shrinks, the other grows."""
    torch.manual_seed(0)
    images = torch.rand(1, 3, 64, 80)
    want = functional.interpolate(images, (70, 84), mode="bilinear", antialias=True)
    got = met3r._to_patches(jnp.asarray(images.permute(0, 2, 3, 1).numpy()), 14)
    np.testing.assert_allclose(got, want.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    want = functional.interpolate(images, (54, 81), mode="bilinear", antialias=True)
    got = met3r._to_patches(jnp.asarray(images.permute(0, 2, 3, 1).numpy()), 27)
    np.testing.assert_allclose(got, want.permute(0, 2, 3, 1).numpy(), atol=1e-5)
