"""The public names."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vitdeploy as package
from vitdeploy import errors

vitdeploy: Any = package
"""As it is at run time: its stub does not show how names are found."""


def test_every_public_name_is_there_and_sorted() -> None:
    assert list(vitdeploy.__all__) == sorted(vitdeploy.__all__)
    assert set(vitdeploy.__all__) == {*vitdeploy._ORIGINS, "__version__"}
    for name in vitdeploy.__all__:
        assert getattr(vitdeploy, name) is not None
    assert set(vitdeploy.__all__) <= set(dir(vitdeploy))


def test_each_public_name_stands_once_and_type_checkers_see_it() -> None:
    """In a stub only ``from module import name as name`` is a name that the module exports."""
    stub = Path(inspect.getfile(vitdeploy)).with_suffix(".pyi").read_text("utf8")
    lines = [alias for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert [alias.name for alias in lines] == [alias.asname for alias in lines]
    assert len({alias.name for alias in lines}) == len(lines)
    code = Path(inspect.getfile(vitdeploy)).read_text("utf8")
    body = code.removeprefix(f'"""{vitdeploy.__doc__}"""')
    assert not [alias.name for alias in lines if alias.name in body]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'vitdeploy' has no attribute 'traim'"):
        _ = vitdeploy.traim


def test_a_name_is_the_object_of_its_module() -> None:
    for name, (module, original) in vitdeploy._ORIGINS.items():
        assert getattr(vitdeploy, name) is getattr(importlib.import_module(module), original)


def test_all_errors_are_public() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.VitdeployError)
    }
    assert tree <= set(vitdeploy.__all__)


def test_a_public_function_takes_few_positional_arguments_and_says_what_it_raises() -> None:
    functions = [value for name in vitdeploy.__all__ if inspect.isfunction(value := getattr(vitdeploy, name))]
    assert len(functions) > 15
    for function in functions:
        positional = [
            one
            for one in inspect.signature(function).parameters.values()
            if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        assert len(positional) <= 4, function.__name__
        assert inspect.getdoc(function), function.__name__


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert vitdeploy.__version__ == version("vitdeploy")


def test_python_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "vitdeploy", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"vitdeploy {vitdeploy.__version__}\n"
