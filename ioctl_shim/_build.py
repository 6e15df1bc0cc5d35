# SPDX-License-Identifier: Apache-2.0
"""Builds `ioctl_shim._native` from native/*.c.  The .cdef files are both C headers and cffi declarations."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "native"
HEADERS = ("lane.h", "client.cdef", "seccomp.h", "takers.h", "vfio.cdef", "iommufd.cdef")
CDEFS = (
    "lane.cdef",
    "callbacks.cdef",
    "client.cdef",
    "seccomp.cdef",
    "takers.cdef",
    "vfio.cdef",
    "iommufd.cdef",
)


def _pkg_config(what: str) -> list[str]:
    return subprocess.check_output(["pkg-config", what, "fuse3"], text=True).split()


def _relative(path: Path) -> str:
    return str(path.relative_to(NATIVE.parent.parent))


ffibuilder = FFI()
for name in CDEFS:
    ffibuilder.cdef((NATIVE / name).read_text())
ffibuilder.set_source(
    "ioctl_shim._native",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    sources=sorted(_relative(path) for path in NATIVE.glob("*.c")),
    depends=sorted(_relative(path) for path in [*NATIVE.glob("*.h"), *NATIVE.glob("*.cdef")]),
    include_dirs=[str(NATIVE)],
    extra_compile_args=[
        "-O2",
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror=implicit-function-declaration",  # newer compilers refuse it by themselves
        "-fvisibility=hidden",
        *_pkg_config("--cflags-only-other"),
    ],
    extra_link_args=["-Wl,--no-as-needed", *_pkg_config("--libs")],
    define_macros=[("_FILE_OFFSET_BITS", "64")],
    # native/call.c uses vectorcall, which is not in the limited interface of Python 3.11
    py_limited_api=False,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
