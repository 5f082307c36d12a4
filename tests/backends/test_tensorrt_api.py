"""Every name that our code uses of TensorRT's interface, held against the table of what each release has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_tensorrt import fake_module
from tensorrt_signatures import api_names, releases, signatures

import vitdeploy.backends
from vitdeploy.backends.tensorrt_builder import network_flags

FOLDER = Path(vitdeploy.backends.__file__).parent
SHARED = ("builder", "monitor", "session", "backend", "options", "refit", "profile")
# how a variable is called → the class of TensorRT that it holds; "" is the module
VARIABLES = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "refusal": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "opened": "ICudaEngine",
    "context": "IExecutionContext",
    "_runtime": "Runtime",
    "runtime": "Runtime",
    "loaded": "Runtime",
    "timing_cache": "ITimingCache",
    "runtime_cache": "IRuntimeCache",
    "refitter": "Refitter",
    "parser_refitter": "OnnxParserRefitter",
    "inspector": "EngineInspector",
    "runtime_config": "IRuntimeConfig",
}
# a call that makes an object → its class: the result must go into a variable of that class, so that nothing escapes
MAKERS = {
    "Builder": "Builder",
    "OnnxParser": "OnnxParser",
    "Runtime": "Runtime",
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "get_input": "ITensor",
    "get_error": "ParserError",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
    "create_engine_inspector": "EngineInspector",
    "create_runtime_config": "IRuntimeConfig",
    "create_runtime_cache": "IRuntimeCache",
    "create_timing_cache": "ITimingCache",
    "get_timing_cache": "ITimingCache",
    "load_runtime": "Runtime",
    "Refitter": "Refitter",
    "OnnxParserRefitter": "OnnxParserRefitter",
}
OUTSIDE_THE_TABLE = {"__version__"}
# files in which these variables are something else: our own backend object in ``tensorrt_backend.py``
NOT_TENSORRT = {
    "tensorrt_backend.py": {"engine", "builder", "config"},
    "tensorrt_rtx.py": {"engine"},
    "tensorrt_lean.py": {"engine"},
}
# asked for with hasattr before it is used
NOT_IN_THE_LEAN_RUNTIME = ("EngineInspector", "Refitter", "OnnxParserRefitter", "ParserError")


def names_used(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and name, as the table spells it, of each use in a file; ``getattr`` with a default is a guard."""
    other = NOT_TENSORRT.get(path.name, set())
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            chain = dotted(node)
            if chain is None:
                continue
            variable, rest = split(chain)
            if variable in VARIABLES and variable not in other and rest and rest[0] not in OUTSIDE_THE_TABLE:
                prefix = [VARIABLES[variable]] if VARIABLES[variable] else []
                yield node.lineno, ".".join([*prefix, *rest][:2])


def dotted(node: ast.AST) -> list[str] | None:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return None if inner is None else [*inner, node.attr]
    return None


def split(chain: list[str]) -> tuple[str, list[str]]:
    """Drop ``self``, ``request`` and what else only holds the variable."""
    while chain and chain[0] not in VARIABLES and len(chain) > 1:
        chain = chain[1:]
    return chain[0], chain[1:]


def used(*files: str) -> list[tuple[str, int, str]]:
    found = [(name, line, use) for name in files for line, use in names_used(FOLDER / name)]
    return sorted(set(found))


SHARED_FILES = tuple(f"tensorrt_{part}.py" for part in SHARED)


def test_enough_names_are_found_for_the_test_to_mean_something() -> None:
    names = {name for _, _, name in used(*SHARED_FILES, "tensorrt.py", "tensorrt_rtx.py")}
    expected = {
        "Builder.build_serialized_network",
        "BuilderFlag.TF32",
        "IBuilderConfig.progress_monitor",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address",
        "ILogger",
        "IProgressMonitor",
        "INetworkDefinition.num_inputs",
        "OnnxParser.parse_from_file",
        "ParserError.node_operator",
        "Runtime.deserialize_cuda_engine",
        "IBuilderConfig.set_compute_capability",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.nvtx_verbosity",
        "IExecutionContext.set_optimization_profile_async",
        "IRuntimeConfig.cuda_graph_strategy",
        "IRuntimeCache.deserialize",
        "ITimingCache.serialize",
        "Runtime.load_runtime",
        "Runtime.get_engine_validity",
        "OnnxParserRefitter.refit_from_file",
        "Builder.num_DLA_cores",
    }
    assert expected <= names
    assert len(names) > 70


def test_names_of_one_release_only_are_caught(tmp_path: Path) -> None:
    source = tmp_path / "tensorrt_sample.py"
    source.write_text(
        "def build(request, trt, config):\n"
        "    config.set_flag(request.trt.BuilderFlag.FP16)\n"
        "    config.build_route = 1\n"
        "    self._context.all_shape_inputs_specified\n"
        "    return getattr(trt, 'Refitted', None), trt.__version__\n"
    )
    names = {name for _, name in names_used(source)}
    assert names == {
        "IBuilderConfig.set_flag",
        "BuilderFlag",
        "BuilderFlag.FP16",
        "IBuilderConfig.build_route",
        "IExecutionContext.all_shape_inputs_specified",
    }
    assert {name for name in names if name not in api_names("11.4")} == {
        "BuilderFlag.FP16",
        "IExecutionContext.all_shape_inputs_specified",
    }
    assert {name for name in names if name not in api_names("10.3")} == {"IBuilderConfig.build_route"}


@pytest.mark.parametrize("release", [*releases(), "rtx"])
def test_shared_code_uses_only_names_that_every_release_has(release: str) -> None:
    known = api_names(release)
    missing = [(file, line, name) for file, line, name in used(*SHARED_FILES) if not base_known(name, known)]
    assert missing == []


@pytest.mark.parametrize("release", releases())
def test_tensorrt_code_uses_only_names_of_tensorrt(release: str) -> None:
    known = api_names(release)
    assert [use for use in used("tensorrt.py") if not base_known(use[2], known)] == []


def test_rtx_code_uses_only_names_of_rtx() -> None:
    known = api_names("rtx")
    assert [use for use in used("tensorrt_rtx.py") if not base_known(use[2], known)] == []


def test_lean_runtime_has_every_name_that_running_an_engine_takes() -> None:
    known = api_names("lean")
    names = {use for _, _, use in used("tensorrt_session.py", "tensorrt_lean.py")}
    missing = {name for name in names if not base_known(name, known)}
    assert {name for name in missing if name.split(".")[0] not in NOT_IN_THE_LEAN_RUNTIME} == set()
    assert len(names) > 20


def base_known(name: str, known: frozenset[str]) -> bool:
    return name.removesuffix(".__init__") in known


def test_objects_of_tensorrt_are_held_by_variables_that_the_test_knows() -> None:
    for file in (*SHARED_FILES, "tensorrt.py", "tensorrt_rtx.py"):
        for node in ast.walk(ast.parse((FOLDER / file).read_text())):
            if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
                continue
            maker = (dotted(node.value.func) or [""])[-1]
            if maker in MAKERS and isinstance(node.value.func, ast.Attribute):
                (target,) = node.targets
                name = (dotted(target) or ["?"])[-1]
                assert VARIABLES.get(name) == MAKERS[maker], f"{file}:{node.lineno} {name} = …{maker}()"


def test_no_file_beside_the_known_ones_touches_tensorrt() -> None:
    files = {path.name for path in FOLDER.glob("*.py") if "trt." in path.read_text()}
    assert files <= {*SHARED_FILES, "tensorrt.py", "tensorrt_rtx.py", "tensorrt_lean.py"}


@pytest.mark.parametrize("release", [*releases(), "rtx"])
def test_network_is_strongly_typed_by_name_in_every_release(release: str) -> None:
    trt = fake_module(release)
    flags = network_flags(trt)
    strong = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert flags == 1 << int(strong)
    assert flags == (2 if release.startswith("10.") else 1)


def test_network_flags_are_none_where_typing_is_always_strong() -> None:
    trt = fake_module("11.1")
    del trt.NetworkDefinitionCreationFlag
    trt.NetworkDefinitionCreationFlag = type("Flags", (), {})
    assert network_flags(trt) == 0


def test_no_precision_flag_and_no_calibrator_is_named_anywhere() -> None:
    forbidden = ("BuilderFlag.FP16", "BuilderFlag.INT8", "BuilderFlag.BF16", "Calibrator", "dynamic_range")
    for path in FOLDER.glob("*.py"):
        assert not any(word in path.read_text() for word in forbidden), path.name


def test_installed_tensorrt_rtx_has_every_name_used() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is an extra: pip install 'vitdeploy[tensorrt-rtx]'")
    assert trt.__version__ == signatures("rtx")["__version__"], (
        "renew the table with tests/support/read_tensorrt_api.py"
    )
    for file, line, name in used(*SHARED_FILES, "tensorrt_rtx.py"):
        held = trt
        for part in name.split("."):
            held = getattr(held, part, None)
        assert held is not None, f"{file}:{line} {name}"
