"""Builds the extension: pip install ."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import proptim

least_squares = Extension(
    "least_squares",
    ["least_squares.pyx"],
    include_dirs=[proptim.get_include()],
    extra_compile_args=["-ffp-contract=off"],  # so that the loop gives the same bits on CPUs with fused multiply-add
)
setup(ext_modules=cythonize(least_squares))
