"""TensorRT's Python API of each release as a table of names and signatures, and classes that hold calls against it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "backends" / "data" / "tensorrt_python_api.json"
MODULES = {"rtx": "tensorrt_rtx", "lean": "tensorrt_lean"}


@functools.cache
def table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


@functools.cache
def api_names(release: str) -> frozenset[str]:
    """Return the names of a release (``10.3``), of TensorRT-RTX (``rtx``) or of the lean runtime (``lean``)."""
    if release in MODULES:
        return frozenset(table()[MODULES[release]])
    order = table()["releases"]
    place = order.index(release)

    def has(span: list[str]) -> bool:
        return release in span if len(span) > 2 else order.index(span[0]) <= place <= order.index(span[-1])

    return frozenset(name for name, span in table()["names"].items() if has(span))


def releases() -> list[str]:
    """Return the releases that are supported, oldest first."""
    order: list[str] = table()["releases"]
    return order


@functools.cache
def signatures(release: str) -> dict[str, Any]:
    """Return name → signature, kind of property or number, as a release has it."""
    if release in MODULES:
        return {name: text for name, text in table()[MODULES[release]].items() if text != ""}
    order = table()["releases"]
    place = order.index(release)
    found: dict[str, Any] = {}
    for kind in ("signatures", "values"):
        for name, rows in table()[kind].items():
            for first, last, text in rows:
                if order.index(first) <= place <= order.index(last) and release in order:
                    found[name] = int(text) if kind == "values" else text
    return found


class Strict:
    """Takes no attribute that its class does not list, and no value that a property of that type refuses, as pybind."""

    names: frozenset[str] = frozenset()
    _trt: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            if name not in self.names:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            kind = self._trt._signatures.get(f"{type(self).__name__}.{name}", "")
            if kind.startswith("property readonly"):
                raise AttributeError(f"property {name!r} of {type(self).__name__!r} object has no setter")
            if kind.startswith("property: ") and not fits(value, kind.removeprefix("property: "), self._trt):
                raise TypeError(f"{type(self).__name__}.{name} = {value!r}: expected {kind}")
        object.__setattr__(self, name, value)


def fits(value: Any, kind: str, module: Any) -> bool:
    """Return whether pybind would take a value for a parameter of a kind, as a signature names it."""
    if kind in ("bool", "str", "tuple", "list"):
        return type(value).__name__ == kind
    if kind in ("int", "SupportsInt"):
        return hasattr(type(value), "__int__") and not isinstance(value, (float, str))
    if kind in ("float", "SupportsFloat"):
        return isinstance(value, (int, float))
    if kind == "Buffer":
        return isinstance(value, (bytes, bytearray, memoryview))
    if kind == "Dims":
        return isinstance(value, (tuple, list)) and all(type(size) is int for size in value)
    expected = getattr(module, kind, None)
    if isinstance(expected, type):
        return value is None or isinstance(value, expected)
    return True


def checked(name: str, function: Callable[..., Any], module: Any) -> Callable[..., Any]:
    """Return a method that refuses arguments which no overload of its signature takes."""
    text = module._signatures.get(name, "")
    overloads = [parameters(part) for part in str(text).split(" | ") if part.startswith("(")]
    if not overloads:
        return function

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        assert any(takes(overload, arguments[1:], named, module) for overload in overloads), (
            f"{name}{arguments[1:]!r} {named!r}: incompatible function arguments, expected {text}"
        )
        return function(*arguments, **named)

    return call


def parameters(signature: str) -> list[tuple[str, str, bool]]:
    """Return (name, type, has a default) of each parameter but ``self``."""
    inner = signature[1 : signature.rindex(") ->")]
    parts = re.split(r",\s*(?![^\[<]*[\]>])", inner) if inner else []
    found = []
    for part in parts[1:]:
        name, _, rest = part.partition(": ")
        kind, default, _ = rest.partition(" = ")
        found.append((name, kind.strip(), bool(default)))
    return found


def takes(overload: list[tuple[str, str, bool]], arguments: tuple[Any, ...], named: dict[str, Any], trt: Any) -> bool:
    given = dict(zip((name for name, _, _ in overload), arguments, strict=False)) | named
    if len(arguments) > len(overload) or set(given) - {name for name, _, _ in overload}:
        return False
    return all(fits(given[name], kind, trt) if name in given else default for name, kind, default in overload)
