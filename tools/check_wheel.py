"""Check wheels before they are published: `python tools/check_wheel.py dist/*.whl`.

A wheel must have a tag that is released, be small, and contain only the known modules and no libraries. On Linux
modules must not need a newer glibc than the tag says, and must export only their initializer and what threadpoolctl
looks up. Needs pyelftools.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

MAX_BYTES = 800_000
NEWEST_GLIBC = (2, 28)
PYTHONS = re.compile(r"(cp31[0-4])-\1|cp314-cp314t|cp312-abi3")
PLATFORMS = re.compile(
    r"manylinux_2_(?P<glibc>\d+)_(x86_64|aarch64)|manylinux2014_(x86_64|aarch64)|musllinux_1_2_(x86_64|aarch64)"
    r"|macosx_\d+_\d+_(x86_64|arm64)|win_(amd64|arm64)"
)
EXPORTS = {  # module -> names besides its initializer; the OpenMP module is missing if the compiler does not support it
    "proptim/_core": {"proptim_pool_get_limit", "proptim_pool_set_limit"},
    "proptim/_openmp": set[str](),
    "proptim/bench/_kernels": set[str](),
}
SYSTEM = r"lib(c|m|pthread)\.so\.\d+|ld-linux-.*|libc(\.musl-\w+)?\.so(\.1)?"
OPENMP = r"libgomp\.so\.1"  # that of the system, which torch and others share; never a copy of our own


def elf_faults(module: str, content: bytes, glibc: tuple[int, int] | None) -> list[str]:
    """The faults of one Linux module; `glibc` is the newest that it may need, None for musl."""
    elf = ELFFile(io.BytesIO(content))
    found = []
    known = re.compile(f"{SYSTEM}|{OPENMP}" if module == "proptim/_openmp" else SYSTEM)
    for tag in elf.get_section_by_name(".dynamic").iter_tags():
        if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
            found.append("has a search path of its own")
        elif tag.entry.d_tag == "DT_NEEDED" and not known.fullmatch(tag.needed):
            found.append(f"needs {tag.needed}")
    needed = elf.get_section_by_name(".gnu.version_r")
    for version in [v.name for _, versions in needed.iter_versions() for v in versions] if needed else []:
        number = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(\.\d+)?", version)
        if number and glibc and (int(number[1]), int(number[2])) > glibc:
            found.append(f"needs {version}")
    out = set()
    versions = elf.get_section_by_name(".gnu.version")
    for index, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
        if symbol.entry.st_shndx != "SHN_UNDEF":
            out.add(symbol.name)
        elif glibc and symbol.entry.st_info.bind == "STB_GLOBAL" and not re.match("_?Py", symbol.name):
            found += [f"needs {symbol.name} of no library"] * (versions.get_symbol(index)["ndx"] == "VER_NDX_GLOBAL")
    allowed = {f"PyInit_{module.rpartition('/')[2]}", *EXPORTS[module]}
    if out != allowed:
        found.append(f"lets out {sorted(out)}; expected {sorted(allowed)}")
    return found


def faults(wheel: Path) -> list[str]:
    """The faults of a wheel, as messages."""
    found = []
    python, _, names = wheel.stem.split("-", 2)[2].rpartition("-")
    pure = (python, names) == ("py3-none", "any")
    platforms = [PLATFORMS.fullmatch(name) for name in names.split(".")]
    if not pure and not (PYTHONS.fullmatch(python) and all(platforms)):
        found.append(f"is for {python}-{names}; expected {PYTHONS.pattern} and {PLATFORMS.pattern}")
    glibcs = [(2, int(match["glibc"] or 17)) for match in platforms if match and match[0].startswith("manylinux")]
    if any(glibc > NEWEST_GLIBC for glibc in glibcs):
        found.append(f"is for {names}; expected glibc {'.'.join(map(str, NEWEST_GLIBC))} or older")
    if wheel.stat().st_size > MAX_BYTES:
        found.append(f"has {wheel.stat().st_size:,} bytes; expected at most {MAX_BYTES:,}")
    modules = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not re.match(r"proptim/|proptim-[^/]*\.dist-info/", name):
                found.append(f"has {name} outside of the package")
            if not re.search(r"\.(so|pyd|dll|dylib)(\.|$)", name):
                continue
            module = name.partition(".")[0]
            if module not in EXPORTS:
                found.append(f"bundles {name}")
                continue
            modules.add(module)
            content = archive.read(name)
            if content.startswith(b"\x7fELF"):
                found += [f"{name} {fault}" for fault in elf_faults(module, content, min(glibcs, default=None))]
    if (modules and pure) or (not pure and not modules >= EXPORTS.keys() - {"proptim/_openmp"}):
        found.append(f"has the modules {sorted(modules)}")
    return found


def main() -> int:
    """Check the wheels named in the command line; exit code 1 if one has a fault."""
    wheels = [Path(name) for name in sys.argv[1:]]
    bad = 0
    for wheel in wheels:
        found = faults(wheel)
        bad += bool(found)
        print(f"{wheel.name}: {'; '.join(found) or f'as it should be, {wheel.stat().st_size:,} bytes'}")
    return int(bad > 0 or not wheels)


if __name__ == "__main__":
    sys.exit(main())
