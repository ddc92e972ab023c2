"""Point clouds alone: a .ply for each time step, or of the fused clip."""

from pathlib import Path

from reangle_jax.export import clouds
from reangle_jax.export.clip import Clip
from reangle_jax.export.writing import Options


def write(root: Path, clip: Clip, options: Options) -> None:
    """Writes NNNNN.ply for each time step, or fused.ply."""
    if options.fused:
        clouds.write_ply(root / "fused.ply", clouds.fused(clip))
        return
    for t in options.frames:
        clouds.write_ply(root / f"{t:05d}.ply", clouds.of_frame(clip, t, most=10_000_000))
