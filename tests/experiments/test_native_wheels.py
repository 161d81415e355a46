"""A wheel needs no more of a system than its name says."""

import re
from zipfile import ZipFile

import pytest

from experiments.native.wheels import LIBRARY, WheelError, check_contents, check_name

NAME = "moe_jax-0.1.0-py3-none-manylinux_2_17_x86_64.whl"


def audit(tag, *libraries):
    return {"overall_tag": tag, "external_libs": dict.fromkeys(libraries)}


@pytest.mark.parametrize("tag", ["manylinux_2_17_x86_64", "manylinux_2_5_x86_64"])
def test_a_wheel_may_need_less_than_its_name_says(tag):
    check_name(NAME, audit(tag))


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        (NAME, audit("manylinux_2_34_x86_64"), "needs manylinux_2_34_x86_64, which its name does not say"),
        (NAME, audit("manylinux_2_17_aarch64"), "needs manylinux_2_17_aarch64, which its name does not say"),
        (NAME, audit("linux_x86_64"), "needs linux_x86_64, which its name does not say"),
        (NAME, audit("manylinux_2_17_x86_64", "libomp.so"), "needs libraries that not every system has: libomp.so"),
        (NAME.replace("py3-none", "cp311-cp311"), audit("manylinux_2_17_x86_64"), "is not for every Python on Linux"),
        (NAME.replace("manylinux_2_17", "linux"), audit("manylinux_2_17_x86_64"), "is not for every Python on Linux"),
    ],
)
def test_a_wheel_that_needs_more_is_refused(name, found, message):
    with pytest.raises(WheelError, match=re.escape(message)):
        check_name(name, found)


def test_a_wheel_without_the_library_is_refused_with_the_compiler_s_message(tmp_path):
    wheel = tmp_path / NAME
    with ZipFile(wheel, "w") as files:
        files.writestr("moe_jax/native/libmoe_jax.txt", "tile.cc:7: error: unknown type")
    with pytest.raises(WheelError, match=r"has no moe_jax/native/libmoe_jax.so: tile.cc:7: error: unknown type"):
        check_contents(wheel)
    with ZipFile(wheel, "a") as files:
        files.writestr(LIBRARY, b"compiled")
    check_contents(wheel)
