"""Pages of the documentation that follow from the code, and files of the repository's root as pages.

``conf.py`` calls ``write_pages`` before Sphinx reads anything, so nothing here is kept in the repository and none of it
can be out of date.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel

import vitdeploy
from vitdeploy import errors
from vitdeploy.cli.app import EXAMPLES, app
from vitdeploy.cli.flags import in_flags, set_command
from vitdeploy.report import read_report
from vitdeploy.report.html import render_html

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PACKAGE = Path(vitdeploy.__file__).parent
BORROWED = {
    "calibration/README.md": "calibration-sets.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files elsewhere in the repository → their page, below ``made/``."""
HOLE = "…"
SHELL_QUOTED = "'\"'\"'"
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
MARKUP = re.compile(r"(?<!\S)--[\w-]+|[*_`<\[]")
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)")


@dataclass(frozen=True)
class Message:
    """What an error says, values of it as an ellipsis, with its class and the module that raises it."""

    kind: str
    text: str
    module: str


def write_pages(folder: Path) -> None:
    """Write every page into ``folder``, which is emptied of pages first."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    for name, page in BORROWED.items():
        text = (ROOT / name).read_text("utf8")
        (folder / page).write_text(relinked(text, ROOT / name, folder), encoding="utf8")
    (folder / "commands.md").write_text(commands(), encoding="utf8")
    (folder / "troubleshooting.md").write_text(troubleshooting(), encoding="utf8")
    (folder / "recipes.md").write_text(recipes(), encoding="utf8")
    (folder / "reference.md").write_text(reference(), encoding="utf8")


def write_demo(folder: Path) -> None:
    """Write the report that the README shows as the page that ``bench --report`` writes, into ``folder``/demo."""
    (folder / "demo").mkdir(parents=True, exist_ok=True)
    (folder / "demo" / "report.html").write_text(render_html(read_report(DOCS / "demo")), encoding="utf8")


def relinked(text: str, source: Path, folder: Path) -> str:
    """Return a page whose links hold from ``folder``; what leads to a file that is no page becomes its name."""
    made = {(ROOT / name).resolve(): folder / page for name, page in BORROWED.items()}

    def replace(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        if target in made:
            target = made[target]
        elif DOCS not in target.parents:
            return f"] (`{match[1]}`)"
        return f"]({os.path.relpath(target, folder)}{match[2] or ''})"

    named = re.sub(r"\[`?([^\]`]+?)/?`?\] \(`\1`\)", r"`\1`", LINK.sub(replace, text))
    return re.sub(r"\[([^\]]*)\] \(`([^`]+)`\)", r"\1 (`\2`)", named)


def error_tree() -> list[type[errors.VitdeployError]]:
    """Return the errors in the order in which they are defined, the root first."""
    found = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.VitdeployError)]
    return sorted(found, key=lambda one: inspect.getsourcelines(one)[1])


def messages() -> Iterator[Message]:
    """Yield each message that the package raises as an error of its own; those of a subclass under its public base."""
    trees = {path: ast.parse(path.read_text("utf8")) for path in sorted(PACKAGE.rglob("*.py"))}
    kinds = {one.__name__: one.__name__ for one in error_tree()}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for node in classes:
        bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in kinds]
        if bases:
            kinds.setdefault(node.name, bases[0])
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            kind = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            text = _text(node.args[0]) if kind in kinds else ""
            if len(text.replace(HOLE, "").strip(" :;,")) > 8:
                yield Message(kinds[kind], text, path.relative_to(PACKAGE).as_posix())


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return HOLE
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return HOLE


def troubleshooting() -> str:
    """Return the page of all errors, by class, each with what it says."""
    lines = [
        "# Troubleshooting by error message",
        "",
        "Every error of vitdeploy is one line that says what is wrong and what to do about it, so this page is an",
        "index: search it for some words of the message. `…` stands for a value. Where a message names keywords or",
        "functions of Python, what the command line prints instead stands below it, behind `>`. `--debug` adds the",
        "traceback. What is no error of vitdeploy's own, such as a full disk, is one line too.",
        "",
        "The page is made from the code: each class with its meaning, and what it says where.",
        "",
    ]
    found = list(messages())
    for kind in error_tree():
        mine = sorted({(one.text, one.module) for one in found if one.kind == kind.__name__})
        lines += [f"## {kind.__name__}", "", f"{inspect.getdoc(kind)} Exit code {kind.exit_code}.", ""]
        for text, module in mine:
            printed = copy_context().run(on_the_command_line, text)
            lines.append(" <br> ".join([f"* {_code(text)}", *(f"`>` {_code(one)}" for one in printed), _code(module)]))
        lines.append("")
    return "\n".join(lines)


def on_the_command_line(text: str) -> list[str]:
    """Return how most of the commands print a message, where that differs from Python's words: one text, or none."""
    found: Counter[str] = Counter()
    for name in sorted(EXAMPLES.keys() - {"run"}):
        set_command([name])
        found[in_flags(text)] += 1
    del found[text]
    return [one for one, _ in found.most_common(1) if SHELL_QUOTED not in one]


def _code(text: str) -> str:
    plain = " ".join(text.split())
    return f"`` {plain} ``" if "`" in plain else f"`{plain}`"


def commands() -> str:
    """Return the page of all commands: each with its usage, arguments, options and example, from the program itself."""
    root: Any = typer.main.get_command(app)
    context = root.make_context("vitdeploy", [], resilient_parsing=True)
    lines = [
        "# Commands",
        "",
        root.help,
        "",
        f"{_plain(root.epilog)} An error is one line; `--debug` adds the traceback.",
        "",
    ]
    for name, command in root.commands.items():
        lines += _command(command, command.make_context(name, [], parent=context, resilient_parsing=True), "##")
        if name in EXAMPLES:
            lines += [f"```sh\n{EXAMPLES[name]}\n```", ""]
    return "\n".join(lines)


def _command(command: Any, context: Any, level: str) -> list[str]:
    """Return the section of a command, those of its own commands below it."""
    path = context.command_path.removeprefix("vitdeploy ")
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"{level} {path}", "", _plain(command.help or ""), ""]
    inner = getattr(command, "commands", {})
    if not inner:
        lines += [f"`vitdeploy {path} {usage}`", ""]
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in record[0]:
            lines.append(f"* {_code(record[0])}: {_plain(record[1])}")
    lines.append("")
    for name, one in inner.items():
        lines += _command(one, one.make_context(name, [], parent=context, resilient_parsing=True), f"{level}#")
    return lines


def _plain(text: str) -> str:
    """Return help text as Markdown: options as code, and nothing else that Markdown acts on; paragraphs stay."""
    paragraphs = (" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n"))
    return "\n\n".join(
        MARKUP.sub(lambda found: f"`{found[0]}`" if found[0].startswith("--") else f"\\{found[0]}", part)
        for part in paragraphs
    )


def recipes() -> str:
    """Return the page of all recipes: that of a run with every key, its sections, and those of training."""
    from vitdeploy.pipeline import recipe

    default = (PACKAGE / "recipes" / "run.yaml").read_text("utf8")
    lines = [
        "# Recipes",
        "",
        "What `vitdeploy run` does is a recipe in YAML; `vitdeploy run --recipe FILE` takes another, which names only",
        "what differs, and `--set KEY=VALUE` changes single keys. A key that is not known is refused, with the nearest",
        "that is.",
        "",
        "## The default",
        "",
        f"```yaml\n{default.rstrip()}\n```",
        "",
        "## Every key",
        "",
        "From the code: what a recipe may hold, its type and its default.",
        "",
        "| key | type | default |",
        "| --- | --- | --- |",
    ]
    lines += [f"| `{key}` | {_cell(kind)} | {_cell(value)} |" for key, kind, value in _keys(recipe.Recipe, "")]
    lines += ["", "Entries of `quantize`:", "", "| key | type | default |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | {_cell(kind)} | {_cell(value)} |" for key, kind, value in _keys(recipe.QuantizeSection, "")]
    lines += ["", "## Training", "", "Of the papers, for `vitdeploy train --recipe NAME`."]
    for path in sorted((PACKAGE / "recipes" / "training").glob("*.yaml")):
        lines += ["", f"### {path.stem}", "", f"```yaml\n{path.read_text('utf8').rstrip()}\n```"]
    return "\n".join(lines) + "\n"


def _keys(model: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, type and default of each field of a model or a dataclass; those of a section follow its key."""
    kinds = get_type_hints(model, include_extras=True)
    for name, default in _defaults(model):
        key = f"{prefix}{name}"
        if is_dataclass(default) or isinstance(default, BaseModel):
            yield key, "section", ""
            yield from _keys(type(default), f"{key}.")
        else:
            shown = "required" if default is ... else repr(default)
            if isinstance(default, tuple) and any(isinstance(one, BaseModel) for one in default):
                shown = "as above"
            yield key, _kind(kinds[name]), shown


def _kind(hint: Any) -> str:
    """Return a type as a person writes it: ``int > 0``, ``'auto' | 'off'``, ``a list of int``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [limit for field in inner[1:] for limit in getattr(field, "metadata", [field])]
        bounds = [
            f"{sign} {getattr(one, name)}" for one in limits for name, sign in BOUNDS.items() if hasattr(one, name)
        ]
        return " ".join([_kind(inner[0]), " and ".join(bounds)]).strip()
    if origin in (Union, UnionType):
        return " | ".join(_kind(one) for one in inner)
    if origin is Literal:
        return " | ".join(repr(one) for one in inner)
    if origin is tuple and inner[-1:] == (...,):
        return f"a list of {_kind(inner[0])}"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_kind, inner))}]"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _defaults(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and default of each field, an ellipsis where it has none."""
    if is_dataclass(model):
        for field in fields(model):
            made = field.default_factory() if field.default_factory is not MISSING else field.default
            yield field.name, ... if made is MISSING else made
    else:
        for name, field in model.model_fields.items():
            yield name, ... if field.is_required() else field.get_default(call_default_factory=True)


def _cell(text: str) -> str:
    short = text if len(text) <= 160 else text[:159] + HOLE
    return f"`{short}`".replace("|", "\\|") if short else ""


def reference() -> str:
    """Return the page of the public names, from their docstrings, in the order of ``__init__.pyi``."""
    lines = ["# API reference", "", "Public names, as `vd.NAME` after `import vitdeploy as vd`.", ""]
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Errors and warnings": []}
    for name in vitdeploy.__all__:
        value = getattr(vitdeploy, name)
        if not inspect.isclass(value):
            if callable(value):
                kinds["Functions"].append(name)
        else:
            kinds["Errors and warnings" if issubclass(value, Exception) else "Classes"].append(name)
    for title, names in kinds.items():
        lines += [f"## {title}", ""]
        for name in names:
            directive = "autofunction" if title == "Functions" else "autoclass"
            members = "   :members:\n" if name in {"Remote", "Predictor", "Report", "Dataset"} else ""
            lines += [f"### {name}", "", f"```{{eval-rst}}\n.. {directive}:: vitdeploy.{name}\n{members}```", ""]
    return "\n".join(lines)
