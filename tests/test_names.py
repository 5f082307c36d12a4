"""Names and docstrings of the package are plain technical English."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import vitdeploy

PACKAGE = Path(vitdeploy.__file__).parent
VAGUE = {
    *("told", "tell", "tells", "telling", "said", "say", "says", "saying", "asked", "ask", "asks", "asking"),
    *("given", "made", "otherwise", "got", "had", "was", "were", "want", "wants", "yes", "its", "looks", "goes"),
    *("of_it", "why_not", "do", "than", "how", "which"),
}
VAGUE_BEGINNINGS = ("what_", "why_", "told_", "said_", "asked_", "asks_", "made_", "given_")


def defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of each variable, parameter, attribute, function and class that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr


def is_vague(name: str) -> bool:
    bare = name.lower().strip("_")
    return bare in VAGUE or bare.startswith(VAGUE_BEGINNINGS)


def booleans_without_whether(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and docstring of each function that returns a bool and does not say what it means.

    A question begins with "Return whether"; what does something first says it and goes on with "; return whether".
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.returns is None:
            continue
        text = ast.get_docstring(node)
        if text is None or ast.unparse(node.returns) not in ("bool", "TypeGuard"):
            continue
        decorators = {ast.unparse(one) for one in node.decorator_list}
        acts = "; return whether " in text.split("\n\n")[0] and not decorators & {"property", "cached_property"}
        if not text.startswith("Return whether ") and not acts:
            yield node.lineno, text.splitlines()[0]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text("utf8"))


def test_names_are_nouns_and_verbs_of_the_field() -> None:
    found = [
        f"{path}:{line} {name}" for path, tree in modules() for line, name in defined_names(tree) if is_vague(name)
    ]
    assert found == []


def test_docstrings_of_booleans_say_return_whether() -> None:
    found = [f"{path}:{line} {text}" for path, tree in modules() for line, text in booleans_without_whether(tree)]
    assert found == []


def test_the_search_for_vague_names_finds_each_kind() -> None:
    source = "told = 1\nself.asked = 2\nfor given in x: pass\ndef _what_is_it(made, size): ...\nclass Said: ..."
    found = {name for _, name in defined_names(ast.parse(source)) if is_vague(name)}
    assert found == {"told", "asked", "given", "_what_is_it", "made", "Said"}


def test_the_search_for_booleans_finds_each_kind() -> None:
    question = 'def f() -> bool:\n    """Tell whether it is."""\n'
    action = 'def f() -> bool:\n    """Fold it; return whether anything changed."""\n'
    assert list(booleans_without_whether(ast.parse(question))) == [(1, "Tell whether it is.")]
    assert list(booleans_without_whether(ast.parse(action))) == []
    assert list(booleans_without_whether(ast.parse(f"@property\n{action}")))
