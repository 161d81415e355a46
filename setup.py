"""moe_jax: sparse Mixture-of-Experts transformers in JAX and Flax."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import jaxlib
from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
NATIVE = ROOT / "moe_jax/native"
COMPILE = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden"]
# Functions that tile.cc becomes, and the processors that these are for.
VARIANTS = {
    "x86_64": {
        "TileAvx512": ["-mcpu=x86_64_v4", "-mprefer-vector-width=512"],
        "TileAvx2": ["-mcpu=x86_64_v3"],
        "TileBaseline": ["-mcpu=x86_64_v2"],
    }
}
# The C library of every Linux that runs JAX has what this version has, so a wheel may be called manylinux_2_17.
GLIBC = "2.17"


class Wheel(bdist_wheel):
    """A wheel for every Python: the kernels are called through ctypes and need no particular one."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BuildNative(build_ext):
    """Compiles the CPU's kernels with the compiler that comes with Zig, so that nobody needs one of their own."""

    def run(self) -> None:
        folder = NATIVE if self.inplace else Path(self.build_lib).absolute() / "moe_jax/native"
        library, reason = folder / "libmoe_jax.so", folder / "libmoe_jax.txt"
        # A library that cannot be built leaves the reason in its place, for `moe_jax.native.library` to say.
        self.failure = ""
        for left in (library, reason):
            left.unlink(missing_ok=True)
        super().run()
        if self.failure:
            folder.mkdir(parents=True, exist_ok=True)
            reason.write_text(self.failure, encoding="utf-8")

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, extension: Extension) -> None:
        machine, target = self._target()
        variants = VARIANTS.get(machine, {"TileBaseline": []})
        units = [("tile.cc", [f"-DTILE={name}", *flags]) for name, flags in variants.items()]
        units.append(("handlers.cc", [f"-I{Path(jaxlib.__file__).parent / 'include'}", *variants["TileBaseline"]]))
        folder = Path(self.build_temp).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        objects = [str(folder / f"{number}.o") for number in range(len(units))]
        for (source, flags), built in zip(units, objects, strict=True):
            self._zig("c++", *target, *COMPILE, "-Wall", "-Wextra", *flags, "-c", str(NATIVE / source), "-o", built)
        library = Path(self.get_ext_fullpath(extension.name)).absolute()
        library.parent.mkdir(parents=True, exist_ok=True)
        self._zig("cc", *target, "-shared", "-s", "-o", str(library), *objects, "-lpthread")

    def _target(self) -> tuple[str, list[str]]:
        """Returns the processor and Zig's flags for the platform that the wheel is named after, by default this one."""
        name = self.get_finalized_command("bdist_wheel").plat_name
        linux = re.fullmatch(r"(?:many)?linux(?:_\d+_\d+)?[-_](\w+)", name)
        if not linux:
            return platform.machine(), []
        return linux[1], ["-target", f"{linux[1]}-linux-gnu.{GLIBC}"]

    def _zig(self, *arguments: str) -> None:
        """Runs Zig; its caches lie in the build folder, because there may be no writable home."""
        cache = str(Path(self.build_temp).absolute() / "zig")
        environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
        command = [sys.executable, "-m", "ziglang", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        sys.stderr.write(done.stderr)
        if done.returncode:
            self.failure = done.stderr.strip() or f"the compiler ended with status {done.returncode}"
            # What setuptools forgives an optional extension.
            raise CompileError(self.failure)


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
    package_data={"moe_jax.native": ["*.cc", "*.h"]},
    ext_modules=[
        Extension(
            "moe_jax.native.libmoe_jax",
            sources=[],
            depends=[str(path.relative_to(ROOT)) for path in sorted(NATIVE.glob("*.[ch]*"))],
            # Where this cannot be built experts run on kernels that XLA compiles.
            optional=True,
        )
    ],
    cmdclass={"bdist_wheel": Wheel, "build_ext": BuildNative},
    install_requires=INSTALL,
    extras_require={
        "test": TEST,
        "notebooks": [*NOTEBOOKS, "jupyterlab>=4.2,<5"],
        "wheels": ["auditwheel>=6.5,<7", "uv>=0.9,<1"],
        # Of tokamax 0.0.12 is for JAX 0.10, 0.0.13 and later for 0.11; from 0.0.15 on its Triton needs jax_triton.
        "gpu": ["jax[cuda13]>=0.10,<0.12", "nvidia-ml-py>=12,<14", "tokamax>=0.0.12,<0.0.15"],
        # With libtpu installed, every JAX process tries to load it: set JAX_PLATFORMS=cpu.
        # libtpu as this JAX takes it: others end the process without a word.
        "tpu-plan": ["jax[tpu]>=0.10,<0.12"],
    },
    entry_points={"console_scripts": ["moe-jax = moe_jax.__main__:run"]},
)
