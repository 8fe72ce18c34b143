"""Every examples/*.py runs as a user would run it: by a new Python, from a folder in which there is nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SKIPPED = 77
"""Exit code of an example whose library is not installed; the one that Automake's and Meson's tests skip by."""

pytestmark = [pytest.mark.once, pytest.mark.skipif(not SOURCES, reason="no examples/ beside tests/")]


def run(source, folder):
    """Run a copy of the example in `folder`."""
    copy = folder / source.name
    copy.write_bytes(source.read_bytes())
    return subprocess.run(
        [sys.executable, copy.name], cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def libraries(source):
    """What the example imports besides the standard library and what it cannot do without."""
    tree = ast.parse(source.read_bytes())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"numpy", "proptim"}


NEEDS = [pytest.param(s, name, id=f"{s.stem}-{name}") for s in SOURCES for name in sorted(libraries(s))]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_example(source, tmp_path):
    """It ends well, has something to say, and leaves nothing behind but compiled code."""
    done = run(source, tmp_path)
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {source.name}


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_says_what_it_shows(source):
    """A docstring at the top; and it checks itself."""
    tree = ast.parse(source.read_bytes())
    assert ast.get_docstring(tree)
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree))


@pytest.mark.parametrize(("source", "library"), NEEDS)
def test_library_is_missing(source, library, tmp_path):
    """One plain line on stderr says which, and the exit code is the one for skipped."""
    stub = f"raise ModuleNotFoundError('No module named {library}', name={library!r})\n"
    (tmp_path / f"{library}.py").write_text(stub)
    done = run(source, tmp_path)
    assert (done.returncode, done.stdout) == (SKIPPED, ""), done.stderr
    assert library in done.stderr.lower()
    assert len(done.stderr.splitlines()) == 1
