"""The package's messages in the words of the command line: a keyword is the flag that sets it, a call is a command.

    labels='names.txt'                                               --labels names.txt
    reset_head=True                                                  --reset-head
    arguments={'heads': 8}                                           --model-arg heads=8
    vd.export('vit.pth', options=vd.ExportOptions(opset=18))         'vitdeploy export vit.pth --opset 18'
    cpu_fallback=True, under 'vitdeploy run'                         --set bench.options.cpu_fallback=true
    workspace_bytes=, under 'vitdeploy run'                          build.workspace_mib

Which flag sets a keyword is read from the commands themselves: their parameters are called, in Python, as those of the
public functions and of their options. What has no flag on the command that was called stays as it is, and so does what
stands in quotes, which is a name or a value of the user's.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from itertools import islice
from typing import Any, get_args

COMMANDS = {
    "list_models": ("models",),
    "make_calibration_set": ("calibration", "make"),
    "show_calibration_set": ("calibration", "show"),
    "check_calibration_set": ("calibration", "check"),
    "observe_calibration": ("calibration", "observe"),
    "merge_calibration_tables": ("calibration", "merge"),
}
"""Public functions whose command has another name than they have."""

RECIPE_KEYS = {"workspace_bytes": "build.workspace_mib", "max_drop_pp": "bench.max_drop"}
"""Keywords of Python that the recipe of ``run`` calls otherwise."""
MEBIBYTES = "workspace_bytes"
"""The keyword that counts bytes, where command line and recipe count MiB."""

OTHER_NAMES = {
    "img_size": "image_size",
    "imgsz": "image_size",
    "input_size": "image_size",
    "classes": "num_classes",
    "batch_size": "batch",
    "pretrained": "weights",
    "lr": "learning_rate",
    "learningrate": "learning_rate",
    "calib": "calibration",
    "dataset": "data",
    "out": "output",
    "arch": "model",
    "half": "fp16",
    "max_drop": "max_drop_pp",
}
"""What other programs call an option."""

SIZE = "HxW"
"""How the metavar of a height and width begins."""
ELLIPSIS = "…"
LONGEST_CALL = 32
"""Closing brackets within which a call ends."""
_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_VALUE = rf"{_STRING}|\((?:[^()]|\([^()]*\))*\)|\{{[^{{}}]*\}}|\[[^\[\]]*\]|[\w.+-]*\w"
_WORDS = re.compile(
    rf"(?P<call>\bvd\.(?P<verb>[a-z_]+)\()"
    rf"|(?P<quoted>(?<!\w)(?:{_STRING})(?!\w))"
    rf"|(?<![\w./\\-])(?P<keyword>[a-z_]+)=(?P<value>{_VALUE})?"
)

_current: ContextVar[tuple[str, ...]] = ContextVar("command", default=())


def set_command(arguments: Sequence[str]) -> None:
    """Remember the command of a command line, whose flags messages name from now on."""
    _current.set(tuple(argument for argument in arguments if not argument.startswith("-"))[:2])


def in_flags(text: str, *, calls_only: bool = False) -> str:
    """Return a message of the package in the words of the command that was called.

    ``calls_only`` is for text that has names of files without quotes: only calls are translated.
    """
    out, end = "", 0
    while (found := _WORDS.search(text, end)) is not None:
        stop, translated = found.end(), None
        if found["call"]:
            stop, translated = _command_text(text, found.start(), found["verb"])
        elif found["keyword"] and not calls_only:
            translated = _keyword_text(found["keyword"], found["value"])
        out += text[end : found.start()] + (text[found.start() : stop] if translated is None else translated)
        end = stop
    return out + text[end:]


def hint_for(option: str, command: Any) -> str:
    """Return how a command sets what it has no option of its own for, such as ``--num-classes``; empty for unknown."""
    from vitdeploy.records import Precision

    name = option.lstrip("-").replace("-", "_")
    name = OTHER_NAMES.get(name, name)
    parameters = _parameters(command)
    if "precision" in parameters and name in get_args(Precision):
        return f"{parameters['precision'].opts[0]} {name}"
    if "arguments" in parameters and name in _model_arguments():
        if name != "num_classes":
            return f"{parameters['arguments'].opts[0]} {name}=VALUE"
        if "reset_head" in parameters:  # a training has as many classes as its data
            return f"{parameters['arguments'].opts[0]} {name}=VALUE {parameters['reset_head'].opts[0]}"
    if name in parameters and parameters[name].param_type_name == "option":
        return str(parameters[name].opts[0])
    path, settable = (_setting(name) or ("", False)) if "settings" in parameters else ("", False)
    return f"--set {path}=VALUE" if settable else ""


@cache
def _model_arguments() -> set[str]:
    """Return the names that ``--model-arg`` knows, of any family of the catalogue."""
    from vitdeploy.catalog import variants

    return {"num_classes", "image_size"}.union(*(one.arguments for one in variants().values()))


def _keyword_text(name: str, value: str | None) -> str | None:
    """Return how the command that was called sets a keyword, None where it does not."""
    command = _command(_current.get())
    parameter = None if command is None else _parameters(command).get(name)
    node = _in_unit(name, _parsed(value)) if value else None
    if parameter is not None:
        return " ".join(_words(parameter, node, in_command=False))
    found = _setting(name) if command is not None and "settings" in _parameters(command) else None
    if found is None:
        return None
    path, settable = found
    return path if node is None else f"{'--set ' if settable else ''}{path}={_yaml(node)}"


def _command_text(text: str, start: int, verb: str) -> tuple[int, str | None]:
    """Return where a call ends and the command that does the same; None where it is no call, or has no command."""
    for closing in islice(re.finditer(r"\)", text[start:]), LONGEST_CALL):
        end = start + closing.end()
        try:
            call = ast.parse(text[start:end], mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        path = COMMANDS.get(verb, (verb,))
        command = _command(path)
        if command is None or not isinstance(call, ast.Call):
            return end, None
        words = ["vitdeploy", *path]
        for parameter, value in _settings(command, call):
            if parameter is None:
                return end, None
            words += _words(parameter, value, in_command=True)
        line = " ".join(words)
        return end, f'"{line}"' if "'" in line else f"'{line}'"
    return start + len("vd."), None


def _settings(command: Any, call: ast.Call) -> Iterator[tuple[Any, ast.expr]]:
    """Yield each argument of a call, those of nested options too, with the command's parameter, None for none."""
    order, named = list(command.params), _parameters(command)
    for index, value in enumerate(call.args):
        yield order[index] if index < len(order) else None, value
    for keyword in call.keywords:
        # options=vd.ExportOptions(...) holds options of its own
        for one in keyword.value.keywords if isinstance(keyword.value, ast.Call) else [keyword]:
            yield named.get(str(one.arg)), _in_unit(str(one.arg), one.value)


def _in_unit(name: str, node: ast.expr) -> ast.expr:
    """Return a keyword's value in the unit of its flag: MiB where Python counts bytes."""
    if name == MEBIBYTES and isinstance(node, ast.Constant) and isinstance(node.value, int):
        return ast.Constant(node.value >> 20)
    return node


def _words(parameter: Any, node: ast.expr | None, *, in_command: bool) -> list[str]:
    """Return the words that give a parameter a value."""
    if parameter.param_type_name == "argument":
        if node is None:
            return [parameter.metavar]
        return [_word(parameter, one) for one in (node.elts if isinstance(node, ast.List) else [node])]
    if isinstance(node, ast.Constant) and node.value is ...:
        return [ELLIPSIS]
    flag = min(parameter.opts, key=len) if in_command else parameter.opts[0]
    if node is None:
        return [flag]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return [flag if node.value or not parameter.secondary_opts else parameter.secondary_opts[0]]
    values = [node]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return [word for key, value in pairs for word in (flag, shlex.quote(f"{_plain(key)}={_yaml(value)}"))]
    if isinstance(node, ast.Tuple) and parameter.multiple and not _is_range(parameter, node):
        values = node.elts
    return [word for value in values for word in (flag, _word(parameter, value))]


def _is_range(parameter: Any, node: ast.Tuple | ast.List) -> bool:
    """Return whether a tuple is one ``MIN:OPT:MAX``, not several values."""
    return ":OPT:" in (parameter.metavar or "") and not any(isinstance(one, ast.Tuple) for one in node.elts)


def _word(parameter: Any, node: ast.expr) -> str:
    if isinstance(node, ast.Tuple | ast.List):
        parts = [_plain(one) for one in node.elts]
        if (parameter.metavar or "").startswith(SIZE):
            return "x".join(parts)
        return parts[0] if len(set(parts)) == 1 else (":" if _is_range(parameter, node) else ",").join(parts)
    text = _plain(node)
    return text if text in (parameter.metavar, ELLIPSIS) else shlex.quote(text)


def _plain(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant):
        return ELLIPSIS if node.value is ... else str(node.value)
    return "" if node is None else ast.unparse(node)


def _yaml(node: ast.expr | None) -> str:
    """Return a value as ``NAME=VALUE`` takes it."""
    try:
        value = ast.literal_eval(node) if node is not None else ""
    except ValueError:  # a placeholder, as in {'num_classes': N}
        return _plain(node)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _parsed(value: str) -> ast.expr:
    try:
        return ast.parse(value, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Constant(value)


def _command(path: Sequence[str]) -> Any:
    """Return the command that a path such as (calibration, make) begins with, None where there is none."""
    command = _root()
    for name in path:
        children = getattr(command, "commands", None)
        if children is None:
            break
        if name not in children:
            return None
        command = children[name]
    return None if hasattr(command, "commands") else command


@cache
def _root() -> Any:
    from typer.main import get_command

    from vitdeploy.cli.app import app

    return get_command(app)


def _parameters(command: Any) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in command.params}


def _setting(name: str) -> tuple[str, bool] | None:
    """Return what ``--set`` of this command calls a keyword, and whether it reaches it, None for what it has not."""
    path, settable = (RECIPE_KEYS[name], True) if name in RECIPE_KEYS else recipe_keys().get(name, ("", False))
    if _current.get()[0] == "run":
        return (path, settable) if path else None
    options = "train.options."
    return (path.removeprefix(options), settable) if path.startswith(options) else None


@cache
def recipe_keys() -> dict[str, tuple[str, bool]]:
    """Return each name that a single key of the recipe of ``run`` has: its dotted path, and whether --set reaches it.

    Those right below ``train`` are left out: a message of weights may be of the source or the teacher as well.
    """
    from vitdeploy.pipeline import default_text
    from vitdeploy.reading import parse_yaml

    found: dict[str, list[tuple[str, bool]]] = {}

    def walk(values: Any, path: str, settable: bool) -> None:
        for one in values if isinstance(values, list) else [values]:
            for name, value in one.items() if isinstance(one, dict) else ():
                place = (f"{path}{name}", settable and not isinstance(values, list))
                if place not in found.setdefault(name, []):
                    found[name].append(place)
                walk(value, f"{path}{name}.", place[1])

    walk(parse_yaml(default_text()), "", True)
    several = {name for name, places in found.items() if len(places) > 1}
    return {name: place for name, (place, *_) in found.items() if name not in several and not _of_train(place[0])}


def _of_train(path: str) -> bool:
    return path.startswith("train.") and path.count(".") == 1
