"""Where this installation keeps the headers, sources and CMake files for programs in C, C++ and Cython."""

from __future__ import annotations

from pathlib import Path

from proptim import _backend


def _folder(*names: str) -> Path:
    """A folder that the build installed next to the compiled core, also in an editable installation."""
    if _backend.missing_core:
        raise FileNotFoundError(
            f"{_backend.missing_core}, so there are no C headers and sources; expected a compiled installation"
        )
    from proptim import _core

    return Path(_core.__file__).parent.joinpath(*names)


def get_include() -> str:
    """The folder of ``proptim.h``, for ``include_dirs`` or ``-I``.

    It also has ``proptim_coefs.h``, and ``proptim_python.h`` for Python extensions. ``python -m proptim --includes``
    prints the compiler option.

    Raises
    ------
    FileNotFoundError
        If this is the pure-Python wheel, which has no headers.

    Examples
    --------
    >>> import pathlib, proptim
    >>> sorted(path.name for path in pathlib.Path(proptim.get_include()).glob("*.h"))
    ['proptim.h', 'proptim_coefs.h', 'proptim_python.h']
    """
    return str(_folder("csrc", "include"))


def get_cmake_dir() -> str:
    """The folder of ``proptimConfig.cmake``, for ``cmake -Dproptim_DIR=``.

    scikit-build-core finds it by itself; ``python -m proptim --cmakedir`` prints it.

    Raises
    ------
    FileNotFoundError
        If this is the pure-Python wheel, which has no sources to compile.

    Examples
    --------
    >>> import pathlib, proptim
    >>> (pathlib.Path(proptim.get_cmake_dir()) / "proptimConfig.cmake").is_file()
    True
    """
    return str(_folder("cmake"))


PATHS = {
    "includes": ("the compiler's -I for proptim.h", lambda: f"-I{get_include()}"),
    "sources": (
        "the C files to compile into a program",
        lambda: " ".join(map(str, sorted(_folder("csrc").glob("*.c")))),
    ),
    "cmakedir": ("the folder of proptimConfig.cmake", get_cmake_dir),
    "pkgconfigdir": ("the folder of proptim.pc", lambda: str(_folder())),
}
"""Option of `python -m proptim` -> what it prints, in words, and how to get it."""
