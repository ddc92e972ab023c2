"""Views of photographs, for the small DUSt3R's training: lifted to 3D by a teacher's depth and seen from elsewhere.

``python -m training.lifted_views --out DIR --bank BANK --scenes N [--first K]``: BANK has a teacher's labels
(`training.make_bank --teacher`). Records are those of `training.views`, and may lie in one folder with them.

A teacher knows inverse depth up to scale and shift, and nothing of the lens: both are drawn at random. Where another
camera sees what the photograph hides, picture and inverse depth go on from the rim (Telea, 2004).
"""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from reangle_jax import commands
from reangle_jax.geometry.cameras import rigid_inverse
from reangle_jax.geometry.splat import infill, splat
from training import records
from training.bank import read_bank
from training.dataset import HEIGHT, WIDTH
from training.depth_frames import FOCALS
from training.views import PART, Views, random_cameras

NEAREST = (0.8, 2.5)  # scene units: the depth of what is nearest
SPREAD = (2.5, 12.0)  # how many times farther the farthest is
HIDDEN = 0.35  # share of a view that may be filled in


@jax.jit
def _seen(image: Array, depth: Array, K: Array, pose: Array) -> tuple[Array, Array, Array]:
    found = splat(image.astype(jnp.float32), depth, K, K, rigid_inverse(pose[None])[0])
    return jnp.round(found.image).astype(jnp.uint8), found.depth, found.visible


def lifted(
    image: UInt8[np.ndarray, "H W 3"], label: Float[np.ndarray, "H W"], rng: np.random.Generator
) -> Views | None:
    """A labelled photograph and what three cameras about it see, at 128x192; None where too much would be made up."""
    low, high = np.quantile(label.astype(np.float32), (0.02, 0.98))
    share = np.clip((label - low) / max(high - low, 1e-6), 0.0, 1.1)
    near, spread = np.exp(rng.uniform(*np.log(NEAREST))), np.exp(rng.uniform(*np.log(SPREAD)))
    depth = (near / (1 / spread + (1 - 1 / spread) * share)).astype(np.float32)
    height, width = image.shape[:2]
    focal = width * np.exp(rng.uniform(*np.log(FOCALS)))
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)
    poses = random_cameras(rng, float(np.median(depth)))
    images, depths = [image], [depth]
    for pose in poses[1:]:
        picture, z, visible = (np.asarray(x) for x in _seen(image, depth, K, pose))
        if visible.mean() < 1 - HIDDEN:
            return None
        inverse = np.where(visible, 1 / np.maximum(z, 1e-3), 0)
        scale = 65535 / inverse.max()  # OpenCV's inpainting of floats breaks up into a chequerboard
        whole = np.round(scale * inverse).astype(np.uint16)
        filled = cv2.inpaint(whole, (~visible).astype(np.uint8), 3, cv2.INPAINT_TELEA) / scale
        images.append(infill(picture[None], visible[None])[0])
        depths.append(1 / np.maximum(filled, 1 / (2 * depth.max())))
    size = WIDTH, HEIGHT
    images = np.stack([cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in images])
    depths = np.stack([cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in depths])
    K = (np.diag([WIDTH / width, HEIGHT / height, 1]) @ K).astype(np.float32)
    return Views(images, depths.astype(np.float16), K, poses)


def lifted_scene(number: int, labels: dict[str, np.ndarray]) -> Views:
    """Scene ``number`` of a teacher's labels, ``images`` and ``inverse_depth``: the same for the same labels."""
    rng = np.random.default_rng([19, number])
    while True:
        k = int(rng.integers(len(labels["images"])))
        found = lifted(labels["images"][k], labels["inverse_depth"][k], rng)
        if found is not None:
            return found


def main() -> None:
    """The command."""
    parser = commands.parser(__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--bank", required=True, help="the folder with a teacher's labels")
    parser.add_argument("--scenes", type=commands.positive, required=True)
    parser.add_argument("--first", type=commands.count, default=0)
    args = parser.parse_args()
    labels = read_bank(args.bank, "labels")
    for first in range(args.first, args.first + args.scenes, PART):
        numbers = range(first, min(first + PART, args.first + args.scenes))
        if records.write(args.out, Views, first, (lifted_scene(k, labels) for k in numbers)):
            print(f"scenes {first} to {numbers[-1]}", flush=True)


if __name__ == "__main__":
    commands.run(main)
