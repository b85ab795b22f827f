"""Build of the C extension ``pkg._core``; everything else is in pyproject.toml."""

import os
import sys
from glob import glob

from setuptools import Extension, setup

if not sys.platform.startswith("linux"):
    sys.exit("pkg-service builds on Linux only, as it uses epoll; on other systems run it in a Linux container")

core = Extension(
    "pkg._core",
    sources=["ext/binding/core.pyx", *sorted(glob("ext/*/*.c"))],
    depends=sorted(glob("ext/*/*.h") + glob("ext/*/*.pxd") + glob("ext/*/*.pxi")),
    include_dirs=["ext"],
    extra_compile_args=[
        "-std=gnu11",
        "-O3",
        "-fvisibility=hidden",
        "-pthread",
        *os.environ.get("PKG_CFLAGS", "").split(),
    ],
    extra_link_args=["-pthread", *os.environ.get("PKG_LDFLAGS", "").split()],
)

# cython_c_in_temp keeps the generated C out of ext/binding/.
setup(ext_modules=[core], options={"build_ext": {"cython_c_in_temp": True}})
