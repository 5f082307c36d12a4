"""Install the wheel as JetPack 6 would, without torch, and use it: everything from an ONNX file onwards.

Run by ``make jetpack``. The environment is kept in ``.venv-jetpack`` and made anew when its constraints or the
project's dependencies change. A quick run of the pipeline in the development environment makes the artifacts that a
workstation would hand over.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from built_wheel import CONSTRAINTS, ROOT, build_wheel, make_artifacts, run

VENV = ROOT / ".venv-jetpack"
PYTHON = VENV / "bin" / "python"
TESTS = (
    "artifacts",
    "datasets",
    "graph",
    "measure",
    "quantization",
    "records",
    "report",
    "runtime",
    "stages/test_bench.py",
    "stages/test_bench_baseline.py",
    "stages/test_bench_data.py",
    "stages/test_bench_devices.py",
    "stages/test_calibration_sets.py",
    "stages/test_inspect.py",
    "stages/test_predict.py",
    "stages/test_quantize.py",
    "stages/test_quantize_inputs.py",
    "stages/test_quantize_refusals.py",
    "stages/test_verify.py",
)
"""What runs without torch; tests among these that need it carry the marker ``torch``."""
COMMANDS = (
    "inspect model.onnx",
    "quantize model.onnx -o fp16.onnx --precision fp16",
    "quantize model.onnx -o int8.onnx --precision int8 --target onnxruntime --calibration digits --samples 64",
    "predict int8.onnx digit.png",
    "bench model.onnx int8.onnx --data digits:test --rounds 1 --iterations 2 --report report",
    "verify int8.onnx",
)


def installer() -> list[str | Path]:
    """Return the command that installs into the environment: uv where the development environment has it, else pip."""
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        return [uv, "pip", "install", "--quiet", "--python", PYTHON]
    return [PYTHON, "-m", "pip", "install", "--quiet"]


def install(wheel: Path) -> None:
    """Install the wheel into the environment; its dependencies only where they changed."""
    wanted = hashlib.sha256(CONSTRAINTS.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamp = VENV / ".installed"
    if not stamp.is_file() or stamp.read_text() != wanted:
        run(sys.executable, "-m", "venv", "--clear", VENV)
        extra = ("pytest", "pytest-xdist", "hypothesis", "jsonschema", "scikit-learn")
        run(*installer(), "--constraint", CONSTRAINTS, wheel, *extra)
        stamp.write_text(wanted)
    run(*installer(), "--no-deps", "--force-reinstall", wheel)


def main() -> None:
    """Build, install, use, test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install(build_wheel(folder))
        artifacts = make_artifacts(folder / "artifacts")
        shutil.copyfile(ROOT / "calibration" / "digits" / "00000.png", artifacts / "digit.png")
        for command in COMMANDS:
            run(PYTHON, "-I", "-m", "vitdeploy", *command.split(), cwd=artifacts)
        run(PYTHON, "-I", "-c", "import sys, vitdeploy as vd; vd.quantize; assert 'torch' not in sys.modules")
        paths = [f"tests/{path}" for path in TESTS]
        run(
            VENV / "bin" / "pytest", "-n", "2", "--dist", "worksteal", "-m", "not torch", "-p", "no:cacheprovider",
            *paths,
            VITDEPLOY_TEST_ARTIFACTS=str(artifacts.parent),
        )  # fmt: skip


if __name__ == "__main__":
    main()
