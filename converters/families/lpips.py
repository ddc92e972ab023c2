"""LPIPS with each of its backbones: torchvision's file and lpips' beside it, or lpips' module in one.

How sure the names are: lpips' (``lin0.model.1.weight``) are those of the files in PyPI's lpips 0.1.4, and the whole
module's are those of its code. torchvision's files were never read here: the names follow from its layer lists, with
which the numbers of parameters in its documentation agree.
"""

from converters.registry import Layout, Model, Part
from converters.tables import lpips
from reangle_jax.models.lpips import Lpips, LpipsConfig

LICENCE = "BSD-2-Clause (factors), BSD-3-Clause (torchvision)"


def _model(backbone: str, torchvision: str, gigabytes: float) -> Model:
    part = Part(
        name="lpips",
        config=LpipsConfig(backbone),
        network=Lpips,
        layouts=(
            Layout("torchvision's and lpips'", lpips.torchvision, "features.0.weight"),
            Layout("lpips' own", lpips.whole, "net.slice1.0.weight"),
        ),
        stems=("model",),
        together=(torchvision, backbone),
        kind=lambda config: {"backbone": config.backbone},
        size=gigabytes,
    )
    source = (
        f"a folder with torchvision's {torchvision}-*.pth (download.pytorch.org/models) and {backbone}.pth of PyPI's "
        f"lpips (lpips/weights/v0.1); or a file with the state_dict of lpips.LPIPS(net='{backbone}')"
    )
    return Model(f"lpips-{backbone}", "https://github.com/richzhang/PerceptualSimilarity", LICENCE, (part,), source)


MODELS = (_model("alex", "alexnet", 0.24), _model("vgg", "vgg16", 0.55), _model("squeeze", "squeezenet1_1", 0.005))
