"""moe_jax: sparse Mixture-of-Experts transformers in JAX and Flax."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

INSTALL = [
    "absl-py>=2.1,<3",
    "array-record>=0.8,<1",
    "chex>=0.1.90,<0.2",
    "flax>=0.12,<0.13",
    "grain>=0.2.18,<0.3",
    "importlib-resources>=6,<8",
    "jax>=0.10,<0.12",
    "jaxtyping>=0.3.2,<0.4",
    "matplotlib>=3.9,<4",
    "ml-collections>=1.0,<2",
    "numpy>=2.0,<3",
    "optax>=0.2.5,<0.3",
    "orbax-checkpoint>=0.11,<0.13",
    "pandas>=2.2,<4",
    "scipy>=1.13,<2",
    "tensorboardX>=2.6,<3",
    "tensorflow-datasets>=4.9.7,<5",
    "tokenizers>=0.21,<0.24",
    "tqdm>=4.66,<5",
]

NOTEBOOKS = [
    "ipykernel>=6.29,<8",
    "nbclient>=0.10,<0.12",
    "nbformat>=5.10,<6",
]

TEST = [
    *NOTEBOOKS,
    "beartype>=0.20,<0.24",
    "hypothesis>=6.130,<7",
    "pytest>=8.3,<10",
    "pytest-xdist>=3.6,<4",
    "ruff>=0.17,<0.18",
    "torch==2.13.0",
    "transformers>=5.18,<6",
]

setup(
    name="moe_jax",
    version="0.1.0",
    description="Sparse Mixture-of-Experts transformers in JAX and Flax: routing, experts, and their study",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["moe_jax", "moe_jax.*"]),
    install_requires=INSTALL,
    extras_require={
        "test": TEST,
        "notebooks": [*NOTEBOOKS, "jupyterlab>=4.2,<5"],
        "gpu": ["jax[cuda13]>=0.10,<0.12"],
        # With libtpu installed, every JAX process tries to load it: set JAX_PLATFORMS=cpu.
        "tpu-plan": ["libtpu>=0.0.40,<0.1"],
    },
    entry_points={"console_scripts": ["moe-jax = moe_jax.__main__:run"]},
)
