"""Metadata of the package, and facts that are stated twice; `nox -s wheels` builds and tests wheels."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

import proptim

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def project():
    """pyproject.toml, which is copied beside the tests where wheels are tried."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))


def test_version():
    """The metadata have the version of the package, and the changelog says what is in it."""
    assert metadata.version("proptim") == proptim.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", proptim.__version__)
    changelog = ROOT / "CHANGELOG.md"
    if changelog.is_file():
        assert f"\n## [{proptim.__version__}]" in changelog.read_text(encoding="utf-8")


def test_version_is_written_once(project):
    """pyproject.toml has no version of its own."""
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]


def test_metadata():
    """What PyPI shows: licence, README, and NumPy as the only required dependency."""
    about = metadata.metadata("proptim")
    assert about["License-Expression"] == "BSD-3-Clause"
    assert about["Description-Content-Type"] == "text/markdown"
    assert "# proptim" in str(about.get_payload())
    always = [need for need in metadata.requires("proptim") if "extra ==" not in need]
    assert [re.match(r"[\w.-]+", need)[0] for need in always] == ["numpy"]


def test_entry_points():
    """Every entry point leads somewhere, and the command is one of them."""
    points = metadata.distribution("proptim").entry_points
    assert ("console_scripts", "proptim") in [(point.group, point.name) for point in points]
    for point in points:
        point.load()


def test_licence_is_installed():
    """The licence goes with the package."""
    assert [file for file in metadata.files("proptim") if file.match("*.dist-info/licenses/LICENSE")]


def test_pythons(project):
    """requires-python, classifiers, and the Pythons that wheels are built for are the same."""
    named = re.findall(r"Python :: 3\.(\d+)", "\n".join(project["project"]["classifiers"]))
    minors = list(map(int, named))
    assert project["project"]["requires-python"] == f">=3.{minors[0]}"
    assert minors == list(range(minors[0], minors[-1] + 1))
    built = project["tool"]["cibuildwheel"]["build"]
    assert [name for name in built if "t-" not in name] == [f"cp3{minor}-*" for minor in minors]
    assert project["tool"]["mypy"]["python_version"] in [f"3.{minor}" for minor in minors]


def test_nothing_is_built_inside_a_checkout(project):
    """It may be read-only: where a wheel is built is left to scikit-build-core, which takes a temporary folder."""
    assert "build-dir" not in project["tool"]["scikit-build"]


def test_sdist(project):
    """What serves only this project's own machines stays out of the sdist."""
    excluded = project["tool"]["scikit-build"]["sdist"]["exclude"]
    assert {".ci", ".github"} <= set(excluded)
    assert not {"csrc", "tests", "bench", "docs", "CMakeLists.txt"} & set(excluded)


@pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="no .github beside tests/: not a checkout")
def test_workflows():
    """Only a tag publishes, and only after everything was built; nothing that is run can change under its name."""
    release = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    publish = release[release.index("\n  publish:\n") :]
    assert "if: github.event_name == 'push' && github.ref_type == 'tag'" in publish
    assert "needs: [source, wheels]" in publish
    assert release.count("id-token: write") == publish.count("id-token: write") == 1
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for action in re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"(actions|pypa)/[\w-]+@(release/)?v\d+", action), action
