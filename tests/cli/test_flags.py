"""Messages of the package speak Python, and the command line says the same in its flags."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign_onnx import write_foreign
from typer.main import get_command

import vitdeploy as vd
from vitdeploy.cli import main
from vitdeploy.cli.app import app
from vitdeploy.cli.flags import COMMANDS, RECIPE_KEYS, in_flags, recipe_keys, set_command
from vitdeploy.pipeline import Recipe

PACKAGE = Path(str(vd.__file__)).parent
OPTIONS = (
    vd.SourceOptions,
    vd.ExportOptions,
    vd.QuantizeOptions,
    vd.ObserveOptions,
    vd.BuildTarget,
    vd.BenchOptions,
    vd.SessionOptions,
    vd.TrainOptions,
)
VERBS = (
    *("train", "convert", "export", "quantize", "sensitivity", "build", "bench", "package"),
    *("predict", "inspect", "verify", "compare", "run"),
)
SHOWN_BY = {
    "backends/onnxruntime.py": ("bench", "predict"),
    "backends/threads.py": ("bench", "predict"),
    "backends/tensorrt": ("build",),
    "backends/timing_place.py": ("quantize",),
    "artifacts/lineage.py": ("bench",),
    "benching/command.py": ("bench",),
    "datasets/class_names.py": ("export", "convert"),
    "datasets/labels.py": ("bench",),
    "checkpoints/": ("export", "convert"),
    "sources/": ("export", "convert"),
    "exporting/": ("export",),
    "graph/lower_opset.py": ("export",),
    "graph/fuse_resize.py": ("export",),
    "quantization/": ("quantize",),
    "remote/host.py": ("build",),
    "training/": ("train",),
    "stages/build.py": ("build",),
    "stages/calibration_sets.py": ("calibration make",),
    "stages/export.py": ("export",),
    "stages/quantize.py": ("quantize",),
    "stages/sensitivity.py": ("sensitivity",),
}
"""Beginning of a module's path → the commands that show its messages, where these name keywords."""
PYTHON_ALONE = ("datasets/opening.py", "runtime/predictor.py")
"""Messages of what no command does: data that is open already, the batches of a predictor."""
FOREIGN = {
    "dynamo": "torch.onnx.export",
    "map_location": "torch.jit.load",
    "root": "a URI of timm's",
    "cache": "the shell program of remote/link.py",
}
OF_SESSIONS = {"warmup", "iterations", "streams", "seconds"}
"""Arguments of ``Session.time`` and ``throughput``, which no command sets."""
KEYWORD = re.compile(r"(?<![\w./\\-])([a-z_]+)=")
HOLE = "HOLE"


@functools.cache
def texts() -> tuple[tuple[str, str, bool], ...]:
    """Return place, text and whether it is a docstring of each string of the package; an f-string has holes."""
    return tuple(_texts())


def _texts() -> Iterator[tuple[str, str, bool]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        if name.startswith("cli/"):
            continue
        tree = ast.parse(file.read_text("utf8"))
        bodies = [body for node in ast.walk(tree) if isinstance(body := getattr(node, "body", None), list)]
        docs = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                pieces = [str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values]
                yield f"{name}:{node.lineno}", "".join(pieces), False
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                yield f"{name}:{node.lineno}", node.value, id(node) in docs


def commands() -> dict[str, Any]:
    """Return each command by its words, as click has it."""
    found: dict[str, Any] = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        for inner, child in getattr(command, "commands", {"": command}).items():
            found[f"{name} {inner}".strip()] = child
    return found


def keywords() -> set[str]:
    """Return every keyword of the public functions and their options."""
    functions = [getattr(vd, name) for name in (*VERBS, *COMMANDS, "open_dataset", "load_source")]
    return {name for one in (*functions, *OPTIONS, vd.Comparison.check) for name in inspect.signature(one).parameters}


def calls(text: str) -> Iterator[ast.Call]:
    for found in re.finditer(r"\bvd\.[a-z_]+\(", text):
        for closing in re.finditer(r"\)", text[found.start() :]):
            try:
                call = ast.parse(text[found.start() : found.start() + closing.end()], mode="eval").body
            except SyntaxError:
                continue
            assert isinstance(call, ast.Call)
            yield call
            break
        else:
            raise AssertionError(f"no call: {text[found.start() :]}")


def bind(call: ast.Call) -> None:
    """Check a call against the signature of what it calls, and those within."""
    assert isinstance(call.func, ast.Attribute)
    named = {str(keyword.arg): keyword.value for keyword in call.keywords}
    inspect.signature(getattr(vd, call.func.attr)).bind_partial(*call.args, **named)
    for value in named.values():
        if isinstance(value, ast.Call):
            bind(value)


def test_no_text_of_the_package_names_a_flag() -> None:
    parameters = [parameter for one in commands().values() for parameter in one.params]
    flags = {flag for one in parameters for flag in one.opts if flag.startswith("-")}
    named = re.compile(rf"(?<![\w-])({'|'.join(sorted(map(re.escape, flags), key=len, reverse=True))})(?![\w-])")
    found = [
        f"{place}: {hits[0]}"
        for place, text, _ in texts()
        # trtexec's command line is not ours, and a report names the command that measures it again
        if (hits := named.findall(text))
        and not place.startswith(("backends/tensorrt_options.py:", "benching/command.py:"))
    ]
    assert found == []


def test_no_text_of_the_package_tells_to_call_a_command() -> None:
    assert [f"{place}: {text}" for place, text, doc in texts() if not doc and "'vitdeploy " in text] == []


def test_every_call_in_a_message_can_be_made_and_has_a_command() -> None:
    seen = 0
    for place, text, doc in texts():
        for call in () if doc else calls(text):
            bind(call)
            assert "vd." not in in_flags(ast.unparse(call)), place
            seen += 1
    assert seen > 30


def test_every_keyword_in_a_message_is_public_and_a_flag_of_the_command_that_shows_it() -> None:
    from vitdeploy.models.registry import FAMILIES, family_class

    arguments = {name for family in FAMILIES for name in inspect.signature(family_class(family)).parameters}
    public, seen = keywords(), set()
    for place, text, doc in texts():
        if doc:
            continue
        outside = re.sub(r"\bvd\.\w+\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)", "", text)
        for name in KEYWORD.findall(outside):
            if name in FOREIGN or name in OF_SESSIONS or (name in arguments and name not in public):
                continue
            assert name in public, f"{place}: {name}= is no keyword of a public function"
            shown = [names for prefix, names in SHOWN_BY.items() if place.startswith(prefix)]
            if not shown and place.startswith(PYTHON_ALONE):
                continue
            assert shown, f"{place}: {name}="
            for command in shown[0]:
                set_command(command.split())
                assert in_flags(f"{name}=") != f"{name}=", f"{place}: {command} has no flag for {name}="
            seen.add(name)
    assert len(seen) > 25


def test_each_command_has_an_example_and_device_means_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    devices = set()
    for name in commands():
        assert main([*name.split(), "--help"]) == 0
        text = capsys.readouterr().out
        assert f"Example: vitdeploy {name}" in text, name
        devices |= set(re.findall(r"--device <?(\S+?)>?\s", text))
    assert devices == {"auto|cpu|cuda"}


def test_positional_parameters_of_a_command_are_those_of_its_function() -> None:
    """What translates ``vd.build('m.onnx', 'm.engine')`` relies on it."""
    names = {name: name for name in VERBS} | {verb: " ".join(path) for verb, path in COMMANDS.items()}
    for verb, command in names.items():
        if verb == "compare":  # two reports in Python, any number on the command line; no message names a call of it
            continue
        kinds = inspect.signature(getattr(vd, verb)).parameters.values()
        wanted = [one.name for one in kinds if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        assert [one.name for one in commands()[command].params][: len(wanted)] == wanted, verb


def test_a_model_without_weights_python_and_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(vd.UsageError, match="needs weights: weights='FILE', or random_weights=True to look"):
        vd.export("deit_tiny_patch16_224", tmp_path / "x.onnx")
    assert main(["export", "deit_tiny_patch16_224", "-o", str(tmp_path / "x.onnx")]) == 2
    assert "needs weights: --weights FILE, or --random-weights to look" in capsys.readouterr().err


def test_a_foreign_graph_python_and_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "of a stranger.onnx"
    write_foreign(file)
    with pytest.raises(vd.ArtifactError) as refused:
        vd.bench([file], "digits")
    (call,) = calls(str(refused.value))
    assert ast.literal_eval(call.args[0]) == str(file)
    assert ast.unparse(call.keywords[0]) == "options=vd.ExportOptions(preprocess='timm:NAME|hf:DIR|FILE')"
    assert main(["bench", str(file), "--data", "digits"]) == 1
    (line,) = re.findall(r'"(vitdeploy [^"]*)"', capsys.readouterr().err)
    words = ["vitdeploy", "export", str(file), "-o", "adopted.onnx", "--preprocess", "timm:NAME|hf:DIR|FILE"]
    assert shlex.split(line) == words


def test_ranges_without_images_python_command_line_and_run(
    tiny_onnx: vd.OnnxModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(vd.CalibrationError, match=r"pass calibration='DATA' .*, or take precision='int8-weight-only'"):
        vd.quantize(tiny_onnx, tmp_path / "x.onnx", precision="int8")
    assert main(["quantize", str(tiny_onnx.path), "-o", str(tmp_path / "x.onnx"), "--precision", "int8"]) == 1
    assert re.search(r"pass --calibration DATA \(.*, or take --precision int8-weight-only$", capsys.readouterr().err)
    set_command(["run"])
    assert in_flags("pass calibration='DATA'") == "pass quantize.calibration=DATA"


@pytest.mark.parametrize(
    ("command", "python", "shell"),
    [
        ("export", "arguments={'heads': 8, 'pool': 'cls'}", "--model-arg heads=8 --model-arg pool=cls"),
        ("export", "arguments={'num_classes': N} draws", "--model-arg num_classes=N draws"),
        ("export", "arguments={'image_size': [224, 160]}", "--model-arg 'image_size=[224,160]'"),
        ("export", "arguments={'scale_by_width': True}", "--model-arg scale_by_width=true"),
        ("export", "name it, as in fuse_resize=(480, 640)", "name it, as in --fuse-resize 480x640"),
        ("export", "name it, as in fuse_resize=(224, 224)", "name it, as in --fuse-resize 224x224"),
        ("build", "build with batch=(4, 4, 4), or", "build with --batch 4, or"),
        ("build", "batch=((1, 1, 1), (2, 4, 8))", "--batch 1 --batch 2:4:8"),
        ("build", "raise workspace_bytes=, or leave it out", "raise --workspace-mib, or leave it out"),
        ("bench", "vd.build(..., target=vd.BuildTarget(batch=(1, 2, 9)))", "'vitdeploy build … --batch 1:2:9'"),
        ("bench", "cuda_graph=False and batches=(1, 8)", "--no-cuda-graph and --batch 1 --batch 8"),
        ("bench", "vd.doctor() and vd.list_models() tell", "'vitdeploy doctor' and 'vitdeploy models' tell"),
        ("train", "resume with skip_unreadable=True", "resume with --set skip_unreadable=true"),
        ("train", "go on with vd.train(..., resume=True)", "go on with 'vitdeploy train … --resume'"),
        ("run", "allow it with cpu_fallback=True", "allow it with --set bench.options.cpu_fallback=true"),
        ("run", "use a higher opset=", "use a higher export.opset"),
        ("run", "raise workspace_bytes=, or leave it out", "raise build.workspace_mib, or leave it out"),
        ("run", "lower workspace_bytes=268435456", "lower --set build.workspace_mib=256"),
        ("run", "raise max_drop_pp=", "raise bench.max_drop"),
        ("build", "raise it to workspace_bytes=1073741824", "raise it to --workspace-mib 1024"),
        ("calibration make", "pass data='DATA'", "pass DATA"),
        (
            "verify",
            "vd.export(..., options=vd.ExportOptions(reference='a b'))",
            "\"vitdeploy export … --reference 'a b'\"",
        ),
    ],
)
def test_what_a_keyword_or_a_call_becomes(command: str, python: str, shell: str) -> None:
    set_command(command.split())
    assert in_flags(python) == shell


@pytest.mark.parametrize(
    "text",
    [
        "there is no file 'labels=a/seed=3.onnx'",
        "/runs/seed=3/labels=x and vit-seed=3",
        "PyTorch's logits and the models' heads",
        "vd.export( is open, vd.write_report() has no command, heads=8 is no flag",
        "vd.export(no_such=1)",
        "vd.export(" + "(" * 5000 + ")" * 5000,
    ],
)
def test_what_is_no_advice_stays_as_it_is(text: str) -> None:
    set_command(["export"])
    assert in_flags(text) == text


def test_names_of_files_stay_where_only_calls_are_translated() -> None:
    set_command(["bench"])
    text = "against seed=3.onnx (no PyTorch): vd.bench(..., baseline='SOURCE')"
    assert in_flags(text, calls_only=True) == "against seed=3.onnx (no PyTorch): 'vitdeploy bench … --baseline SOURCE'"


def test_stored_advice_is_python_in_the_record_and_flags_on_the_terminal(
    tiny_onnx: vd.OnnxModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detail = "vd.export(..., options=vd.ExportOptions(reference='DATA')) stores them"
    alone = str(shutil.copy(tiny_onnx.path, tmp_path / "alone.onnx"))
    checks = {check.name: check for check in vd.verify(alone, "digits:test").checks}
    assert detail in checks["agreement with PyTorch"].detail
    assert main(["verify", alone, "--data", "digits:test"]) == 0
    assert "'vitdeploy export … --reference DATA' stores them" in capsys.readouterr().out
    main(["verify", alone, "--data", "digits:test", "--json"])
    assert detail in capsys.readouterr().out


def test_every_option_of_a_stage_is_a_key_of_the_recipe() -> None:
    """An option that the recipe calls otherwise has its row in RECIPE_KEYS, and that row names a key there is."""
    recipe = Recipe()
    assert recipe.build.workspace_mib is None
    assert recipe.bench.max_drop is None
    assert recipe.bench.min_accuracy_ratio is None
    assert set(RECIPE_KEYS.values()) == {"build.workspace_mib", "bench.max_drop"}
    options = [recipe.quantize[0].options, recipe.bench.options, recipe.build, recipe.train.options]
    known = {name for one in options for name in vars(one)}
    stages = (vd.QuantizeOptions, vd.BuildTarget, vd.BenchOptions, vd.TrainOptions)
    names = {name for one in stages for name in inspect.signature(one).parameters}
    assert names - known - RECIPE_KEYS.keys() == set()


def test_keys_of_the_recipe_that_stand_once_are_named_whole() -> None:
    keys = recipe_keys()
    assert keys["label_map"] == ("bench.options.label_map", True)
    assert keys["min_sqnr_db"] == ("quantize.options.min_sqnr_db", False)
    assert not {"weights", "samples", "random_weights", "resume"} & keys.keys()
