"""Install the wheel as JetPack 6 would, without torch, and use it: everything from an ONNX file onwards.

The sdist is built first and the wheel from it, so both are known to be whole. The environment is kept in
``.venv-jetpack`` and made anew when its constraints or the project's dependencies change. A quick run of the pipeline
in the development environment makes the artifacts that a workstation would hand over.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
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


def run(*words: str | Path, cwd: Path = ROOT, **variables: str) -> None:
    """Run a command without this process's Python path; raise with its output where it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**environment, **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{' '.join(map(str, words))}: exit code {done.returncode}")
    print(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "", flush=True)


def build(folder: Path) -> Path:
    """Return the wheel that is built from the sdist, both in ``folder``."""
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder)
    (sdist,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path) -> None:
    """Install the wheel into the environment; its dependencies only where they changed."""
    constraints = HERE / "constraints.txt"
    wanted = hashlib.sha256(constraints.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamp = VENV / ".installed"
    if not stamp.is_file() or stamp.read_text() != wanted:
        run(sys.executable, "-m", "venv", "--clear", VENV)
        extra = ("pytest", "pytest-xdist", "hypothesis", "jsonschema", "scikit-learn")
        run(PYTHON, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel, *extra)
        stamp.write_text(wanted)
    run(PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)


def main() -> None:
    """Build, install, use, test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install(build(folder))
        artifacts = folder / "artifacts" / "run"
        imports = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support")))
        run(sys.executable, HERE / "make_artifacts.py", artifacts.parent, PYTHONPATH=imports)
        shutil.copyfile(ROOT / "calibration" / "digits" / "00000.png", artifacts / "digit.png")
        for command in COMMANDS:
            run(PYTHON, "-I", "-m", "vitdeploy", *command.split(), cwd=artifacts)
        run(PYTHON, "-I", "-c", "import sys, vitdeploy as vd; vd.quantize; assert 'torch' not in sys.modules")
        paths = [f"tests/{path}" for path in TESTS]
        run(
            VENV / "bin" / "pytest", "-n", "2", "-m", "not torch", "-p", "no:cacheprovider", *paths,
            VITDEPLOY_TEST_ARTIFACTS=str(artifacts.parent),
        )  # fmt: skip


if __name__ == "__main__":
    main()
