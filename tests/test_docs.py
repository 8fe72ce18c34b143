"""Examples in docstrings and README run, and everything public is documented."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import proptim
from proptim import schedules

README = Path(__file__).parents[1] / "README.md"
MODULES = sorted(m.name for m in pkgutil.walk_packages(proptim.__path__, "proptim.") if not m.name.endswith("__main__"))
SECTIONS = ["Parameters", "Raises", "Examples", "Notes", "References"]


@pytest.mark.parametrize("name", ["proptim", *MODULES])
def test_doctests(name, tmp_path, monkeypatch):
    """The examples of every module."""
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("proptim"):
            raise
        pytest.skip(f"{error.name} is not installed")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("cls", proptim.OPTIMIZERS.values(), ids=proptim.OPTIMIZERS)
def test_optimizers_are_documented(cls):
    """Every optimizer has all sections in order, every hyperparameter, and an example; AdamW may point to Adam."""
    text = inspect.cleandoc(cls.__doc__)
    sections = re.findall(r"^(\w+)\n-+$", text, re.MULTILINE)
    if re.search(r"errors and references of `\w+` hold", text):
        assert sections == [s for s in SECTIONS if s in ("Examples", "Notes", "References")]
    else:
        assert sections == SECTIONS
        described = re.findall(r"^(\w+) : ", text, re.MULTILINE)
        assert described == [p for p in inspect.signature(cls).parameters if p != "options"]
        for parameter in inspect.signature(cls).parameters.values():
            if isinstance(parameter.default, (int, float)):
                shown = re.search(rf"^{parameter.name} : .*default (\S+)$", text, re.MULTILINE)
                assert shown, parameter.name
                assert eval(shown[1]) == parameter.default
    assert f"proptim.{cls.__name__}(" in text
    assert ".. math::" in text


@pytest.mark.parametrize("name", [n for n in proptim.__all__ if n not in ("__version__", "OPTIMIZERS")])
def test_everything_public_has_a_docstring(name):
    """Every exported name, and every public method and property of the classes among them."""
    thing = getattr(proptim, name)
    assert inspect.getdoc(thing)
    assert inspect.getdoc(thing) != inspect.getdoc(type(thing)), "of its type only"
    for key, member in vars(thing).items() if inspect.isclass(thing) else ():
        if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, (property, classmethod))):
            assert inspect.getdoc(getattr(thing, key)) or key in ("rule", "check", "advance", "steady"), key


def test_schedules_have_docstrings():
    """Every schedule says what it does; a dataclass without words describes itself by its signature."""
    for thing in vars(schedules).values():
        if inspect.isclass(thing) and thing.__module__ == schedules.__name__:
            assert thing.__doc__
            assert not thing.__doc__.startswith(f"{thing.__name__}(")


def fences():
    """The Python blocks of the README."""
    text = README.read_text(encoding="utf-8") if README.is_file() else ""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not fences(), reason="no README with examples beside tests/")
def test_readme_examples(tmp_path, monkeypatch, capsys):
    """The README's Python blocks run, one after the other, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    for number, block in enumerate(fences()):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)
    assert capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not fences(), reason="no README with examples beside tests/")
def test_readme_names():
    """The README names every optimizer, and links to files that are there."""
    text = README.read_text(encoding="utf-8")
    for cls in proptim.OPTIMIZERS.values():
        assert f"`{cls.__name__}`" in text
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (README.parent / link).exists(), link
