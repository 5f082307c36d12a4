"""From an ONNX file to predictions on an emulated aarch64 machine, and whether they are this machine's.

Run by ``make test-aarch64``. qemu-user runs Debian's arm64 Python with the ordinary aarch64 wheels, of NumPy and ONNX
Runtime those that JetPack 6 gets, as a Cortex-A76, whose instructions are those of Orin's A78AE. Both are kept in
``build/aarch64`` and made anew when a requirement changes. The development environment makes the graphs; the emulated
machine has no torch. What it computes is right or wrong; how long it takes says nothing about a device.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from built_wheel import CONSTRAINTS, ROOT, build_wheel, make_artifacts, run
from PIL import Image

HERE = Path(__file__).resolve().parent
KEPT = ROOT / "build" / "aarch64"
SYSTEM = KEPT / "root"
SITE = SYSTEM / "usr" / "lib" / "python3" / "dist-packages"
QEMU = next(filter(None, map(shutil.which, ("qemu-aarch64-static", "qemu-aarch64"))), None)
CPU = "cortex-a76"
PACKAGES = ("python3", "libstdc++6")
SOURCES = tuple(map(Path, ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")))
GLIBC = 35
"""The minor version of JetPack 6's C library: no wheel may ask for a newer one."""
DIGITS = {"model.onnx": 1e-4, "model.int8.onnxruntime.onnx": 0.05}
"""Graphs of the quick run, and how far logits may differ, as a share of their range: kernels for INT8 round apart."""
PHOTOGRAPHS = {"deit.onnx": 1e-4}
EXPORT = "export deit_tiny_patch16_224 --random-weights -o deit.onnx"
COMMANDS = (
    "doctor",
    "inspect model.onnx",
    "verify model.onnx --data digits:test",
    "predict model.onnx digit.png",
    "quantize model.onnx -o int8.onnx --precision int8 --target onnxruntime --calibration digits --samples 64",
    "verify int8.onnx --data digits:test",
    "bench model.onnx int8.onnx --data digits:test --samples 50 --rounds 1 --iterations 2 --no-processes",
    "package model.onnx int8.onnx -o vit.zip",
    "verify vit.zip",
    "predict vit.zip digit.png",
    "predict deit.onnx photographs",
)
"""Measuring memory takes processes of its own, which qemu-user starts only where the kernel knows it as binfmt."""


def refuse_what_is_missing() -> None:
    """Say what to install, or why this machine needs no emulation."""
    if platform.machine() == "aarch64":
        raise SystemExit("this machine is an aarch64 already: make jetpack")
    if QEMU is None:
        raise SystemExit("qemu-user is not installed: on Debian 'apt-get install qemu-user-static'")
    if missing := [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]:
        raise SystemExit(f"{' and '.join(missing)} not found: Debian's arm64 Python is fetched by Debian's own tools")


def fetch_system() -> None:
    """Unpack Debian's Python for arm64 into a folder; the machine's own packages stay as they are."""
    source = next((path for path in SOURCES if path.is_file()), SOURCES[-1])
    shutil.rmtree(KEPT, ignore_errors=True)
    archives = KEPT / "archives"
    for folder in (KEPT / "state" / "lists" / "partial", archives / "partial", SYSTEM):
        folder.mkdir(parents=True)
    (KEPT / "status").touch()  # no package is installed: whatever Python needs is fetched
    configuration = KEPT / "apt.conf"
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State": KEPT / "state",
        "Dir::State::status": KEPT / "status",
        "Dir::Cache": KEPT,
        "Dir::Cache::archives": archives,
        "Dir::Etc::sourcelist": source,
        "Dir::Etc::sourceparts": "/dev/null",
    }
    configuration.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    run("apt-get", "update", APT_CONFIG=str(configuration))
    run(
        "apt-get", "install", "--download-only", "--no-install-recommends", "--yes", *PACKAGES,
        APT_CONFIG=str(configuration),
    )  # fmt: skip
    for package in archives.glob("*.deb"):
        run("dpkg-deb", "--extract", package, SYSTEM)
    shutil.rmtree(archives)


def pip(*words: str | Path) -> None:
    """Install wheels for the emulated machine, resolved and unpacked by this machine's pip."""
    name = (SYSTEM / "usr" / "bin" / "python3").readlink().name  # python3.11 in Debian 12
    tags = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1))]
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", SITE, "--only-binary=:all:",
        "--implementation", "cp", "--python-version", name.removeprefix("python"),
        *(word for tag in tags for word in ("--platform", tag)), *words,
    )  # fmt: skip


def install(wheel: Path) -> None:
    """Make the emulated machine where a requirement changed, and put the wheel on it."""
    texts = [*PACKAGES, *(path.read_text() for path in (CONSTRAINTS, ROOT / "pyproject.toml"))]
    wanted = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    stamp = KEPT / ".installed"
    if not stamp.is_file() or stamp.read_text() != wanted:
        fetch_system()
        pip("--constraint", CONSTRAINTS, wheel)
        stamp.write_text(wanted)
    pip("--no-deps", wheel)


def emulated(*words: str | Path, cwd: Path) -> None:
    """Run the emulated machine's Python, with nothing of this machine's environment."""
    assert QEMU is not None
    variables = (f"HOME={cwd}", "LANG=C.UTF-8", "PATH=/usr/bin:/bin")
    python = SYSTEM / "usr" / "bin" / "python3"
    run("env", "-i", *variables, QEMU, "-cpu", CPU, "-L", SYSTEM, python, "-I", *words, cwd=cwd)


def write_photographs(folder: Path) -> None:
    """Write JPEGs of a size of their own, smooth with a little noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate(((640, 480), (333, 500), (224, 224))):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index}.jpg", quality=90)


def compare(folder: Path, images: str, limits: dict[str, float]) -> None:
    """Compare what graphs compute of images here and there; raise where logits or the first classes part."""
    script = HERE / "outputs.py"
    run(sys.executable, script, images, "here.npz", *limits, cwd=folder, PYTHONPATH=str(ROOT))
    emulated(script, images, "there.npz", *limits, cwd=folder)
    with np.load(folder / "here.npz") as here, np.load(folder / "there.npz") as there:
        for graph, limit in limits.items():
            expected, found = here[graph], there[graph]
            difference = np.abs(found - expected).max() / np.ptp(expected)
            same = int((found.argmax(1) == expected.argmax(1)).sum())
            line = f"{graph}: {same} of {len(expected)} images in the same first class, logits within {difference:.1e}"
            print(line, flush=True)
            if not difference <= limit or (limit < 1e-3 and same < len(expected)):
                raise SystemExit(f"{line} of their range, expected {limit:.0e} on both machines")


def main() -> None:
    """Build, install, use, compare."""
    refuse_what_is_missing()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install(build_wheel(folder))
        work = make_artifacts(folder / "artifacts")
        digits = ROOT / "calibration" / "digits"
        shutil.copyfile(digits / "00000.png", work / "digit.png")
        write_photographs(work / "photographs")
        run(sys.executable, "-m", "vitdeploy", *EXPORT.split(), cwd=work, PYTHONPATH=os.fspath(ROOT))
        compare(work, str(digits), DIGITS)
        compare(work, "photographs", PHOTOGRAPHS)
        for command in COMMANDS:
            print(f"vitdeploy {command}", flush=True)
            emulated("-m", "vitdeploy", *command.split(), cwd=work)
        emulated("-c", "import sys, vitdeploy as vd; vd.quantize; assert 'torch' not in sys.modules", cwd=work)


if __name__ == "__main__":
    main()
