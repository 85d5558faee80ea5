"""Builds native/: the resampler, the JPEG decoder, digests and what readers do with each sample.

Without a C compiler the install is whole all the same: Pillow then resizes, libjpeg-turbo decodes and
OpenSSL tells digests.
"""

import os
import sys
import sysconfig

from setuptools import Extension, setup

# One binary for every CPython from 3.11 on; those without the interpreter's lock have no stable interface yet.
STABLE = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
# Weights are Pillow's, and draws everywhere the same, only by IEEE 754's arithmetic with a * b + c rounded twice (with
# MSVC a pragma in resample.h says so). A root that tells no errno can be vectorised; it is the same root.
EXACT = ["-fno-fast-math", "-ffp-contract=off", "-fno-math-errno"]
FLAGS = ["/O2", "/std:c11"] if os.name == "nt" else ["-O3", "-g0", "-fvisibility=hidden", *EXACT]

setup(
    ext_modules=[
        Extension(
            "latentmill.transforms._resample",
            sources=[
                "native/module.c",
                "native/compute.c",
                "native/tables.c",
                "native/kernels.c",
                "native/stored.c",
                "native/draw.c",
                "native/reading.c",
                "native/decode.c",
                "native/jpeg.c",
                "native/jpeg_scan.c",
                "native/jpeg_pixels.c",
                "native/digests.c",
                "native/sha256.c",
            ],
            depends=[
                "native/resample.h",
                "native/normals.h",
                "native/draw.h",
                "native/reading.h",
                "native/decode.h",
                "native/jpeg.h",
                "native/jpeg_lanes.h",
                "native/digests.h",
                "native/processor.h",
                "native/sha256.h",
                "native/kernels_x86.h",
            ],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if STABLE else [],
            py_limited_api=STABLE,
            extra_compile_args=FLAGS,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE else {},
)
