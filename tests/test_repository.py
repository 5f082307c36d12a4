"""Claims about the repository's own files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitdeploy

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "vitdeploy").rglob("*.py"))
HOLE = re.compile(r"(?<!\{)\{[A-Za-z_][^{}]*\}(?!\})")


def messages_without_f(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and placeholder of every literal ``{name}`` inside a raise or an assert's message.

    Parts of an f-string count too: in ``f"{a}" "{b}"`` the second lacks its f.
    """
    for node in ast.walk(ast.parse(source)):
        part = node.exc if isinstance(node, ast.Raise) else node.msg if isinstance(node, ast.Assert) else None
        if part is None:
            continue
        for text in ast.walk(part):
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found = HOLE.search(text.value)
                if found:
                    yield text.lineno, found.group()


def test_the_search_for_a_missing_f_finds_one() -> None:
    source = 'raise ValueError(f"{a}" "and {type(b)}")\nassert x, "{y!r}"\nraise ValueError("{{a}}")'
    assert list(messages_without_f(source)) == [(1, "{type(b)}"), (2, "{y!r}")]


def test_no_error_message_lacks_its_f() -> None:
    found = {str(path.relative_to(ROOT)): list(messages_without_f(path.read_text("utf-8"))) for path in SOURCES}
    assert {path: places for path, places in found.items() if places} == {}


INERT = {"vitdeploy/checkpoints/pickles.py", "vitdeploy/checkpoints/torch_files.py"}
"""The reader of pickles that calls and imports nothing; its own tests hold it to that."""


def unpickling(source: str) -> Iterator[str]:
    """Yield line and text of what could run code in a file: pickle's kin, and loads that are not told to refuse it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom) and ast.unparse(node) != "from pickle import UnpicklingError":
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & set(names):
                yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
            torch_runs = name == "torch.load" and options.get("weights_only") != "True"
            numpy_runs = name in {"np.load", "numpy.load"} and options.get("allow_pickle", "False") != "False"
            if torch_runs or numpy_runs:
                yield f"{node.lineno}: {ast.unparse(node)}"


def test_nothing_is_unpickled() -> None:
    found = {str(path.relative_to(ROOT)): list(unpickling(path.read_text("utf-8"))) for path in SOURCES}
    assert {path: places for path, places in found.items() if places and path not in INERT} == {}
    for path in INERT:  # an unpickler of our own, whose lookup of names is overridden; never pickle's own
        source = (ROOT / path).read_text("utf8")
        assert not re.search(r"pickle\.(?:loads?|Unpickler)\(", source), path
    assert "def find_class" in (ROOT / "vitdeploy/checkpoints/pickles.py").read_text("utf8")


def test_the_search_for_unpickling_finds_each_way() -> None:
    ways = ["import pickle", "from joblib import load", "torch.load(p)", "np.load(p, allow_pickle=True)"]
    assert all(list(unpickling(way)) for way in ways)
    assert not any(list(unpickling(way)) for way in ["torch.load(p, weights_only=True)", "np.load(p)", "import json"])


def test_every_module_is_named_for_what_it_does() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [path for path in SOURCES if path.stem in vague] == []


def private_chain(source: str) -> list[str]:
    """Return the longest chain of calls within a module from one function of it to private ones."""
    functions = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    private = {name for name in functions if name.startswith("_") and not name.startswith("__")}

    def longest(name: str, above: list[str]) -> list[str]:
        named = {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(functions[name])}
        chains = [longest(called, [*above, name]) for called in sorted(named & private - {*above, name})]
        return max(chains, key=len, default=[*above, name])

    return max((longest(name, []) for name in functions), key=len, default=[])


def test_the_search_for_private_chains_finds_the_longest() -> None:
    source = "def verb():\n    _a()\n    _c()\ndef _a():\n    self._b()\ndef _b():\n    _a()\n    _c()\ndef _c(): ..."
    assert private_chain(source) == ["verb", "_a", "_b", "_c"]
    assert private_chain("def verb():\n    other()\ndef other(): ...") == ["verb"]


def test_verbs_are_read_without_long_descents() -> None:
    """From a verb of ``stages/`` down to what does the work, at most three private functions follow each other."""
    chains = {
        path.name: private_chain(path.read_text("utf8"))
        for path in sorted((ROOT / "vitdeploy" / "stages").glob("*.py"))
    }
    assert {name: chain for name, chain in chains.items() if len(chain) > 4} == {}


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout (an unpacked source archive)")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_place_on_the_machine_it_was_written_on() -> None:
    texts = [str(ROOT), str(Path.home()) + "/", sys.prefix]
    places = [place.encode() for place in texts if len(place) > len("/root/")]
    for path in tracked_files():
        data = path.read_bytes()
        assert not [place for place in places if place in data], path
        assert not re.search(rb"(?:extra-)?index-url[ =]+\S*:", data), path


def test_no_tracked_file_is_large() -> None:
    sizes = {path.relative_to(ROOT): path.stat().st_size for path in tracked_files()}
    assert {path: size for path, size in sizes.items() if size > 1_500_000} == {}


def test_every_constraint_is_an_exact_pin() -> None:
    from packaging.requirements import Requirement

    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert [spec.operator for spec in requirement.specifier] == ["=="], line


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_constraints_pin_each_package_once_and_all_that_pyproject_names(python: str) -> None:
    from packaging.requirements import Requirement

    environment = {"python_version": python, "python_full_version": f"{python}.1"}
    pinned: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in pinned, f"{requirement.name} is pinned twice on Python {python}"
            pinned[requirement.name] = str(next(iter(requirement.specifier)).version)
    for text in declared_requirements():
        requirement = Requirement(text)
        if requirement.name == "vitdeploy" or requirement.name in {
            "tensorrt",
            "tensorrt-cu12",
        }:  # tensorrt comes from NVIDIA
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name.lower())
        assert name in pinned, f"{name} is not pinned on Python {python}"
        if str(requirement.specifier) != "<13,>=12.6":  # the JetPack 6 extra stays apart from the development one
            assert requirement.specifier.contains(pinned[name]), f"{text} against {pinned[name]}"


def declared_requirements() -> list[str]:
    """Return every requirement string of pyproject.toml; Python 3.10 has no tomllib, so by pattern."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    return re.findall(r'"([^"\n]+)"', section)


def test_installed_packages_are_the_pinned_ones() -> None:
    """What the tests ran with is what ``constraints.txt`` promises; else the pins were never tried."""
    import importlib.metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    installed = {
        canonicalize_name(entry.metadata["Name"]): entry.version for entry in importlib.metadata.distributions()
    }
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1].isalnum()]
    wrong = [
        f"{pin.name} {installed[pin.name]}, pinned {pin.specifier}"
        for pin in pins
        if pin.name in installed
        and pin.name != "setuptools"  # what made the environment, not what runs in it
        and (pin.marker is None or pin.marker.evaluate())
        and not pin.specifier.contains(installed[pin.name])
    ]
    assert wrong == []


def test_the_package_is_found_from_the_folder_above_the_clone(tmp_path: Path) -> None:
    """There the clone's own folder is called as the package is, and Python takes it for a package without files."""
    (tmp_path / "vitdeploy").symlink_to(ROOT, target_is_directory=True)
    code = "import vitdeploy; print(vitdeploy.__file__, vitdeploy.__version__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == vitdeploy.__version__
