"""Renews ``tests/backends/data/tensorrt_python_api.json``: the names and signatures of each release's Python bindings.

    python tests/support/read_tensorrt_api.py                       # fetches the wheels with pip, writes the table
    python tests/support/read_tensorrt_api.py --wheels FOLDER       # reads wheels that are there

The bindings are small wheels of their own. Each is imported in a child process beside stand-ins for the libraries that
it links: functions that return nothing. That is enough for the module to register its classes, so the table has exactly
the names, values and signatures of each release, and no GPU or TensorRT library is needed. TensorRT-RTX and the lean
runtime are read as they are installed. Linux x86-64, with a C compiler and binutils.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, SupportsInt

TABLE = Path(__file__).parents[1] / "backends" / "data" / "tensorrt_python_api.json"
WHEELS = {
    **{f"10.{minor}": f"10.{minor}.0" for minor in (3, 4, 5)},
    "10.6": "10.6.0.post2",
    "10.7": "10.7.0.post1",
    "10.8": "10.8.0.43",
    "10.9": "10.9.0.34",
    "10.10": "10.10.0.31",
    "10.11": "10.11.0.33",
    "10.12": "10.12.0.36",
    "10.13": "10.13.3.9",
    "10.14": "10.14.1.48.post1",
    "10.15": "10.15.1.29",
    "10.16": "10.16.0.72",
    "11.0": "11.0.0.114",
    "11.1": "11.1.0.106",
    "11.2": "11.2.1.2",
    "11.3": "11.3.0.99",
    "11.4": "11.4.0.106",
}
PACKAGE = "tensorrt-cu12-bindings"
# classes whose signatures the stand-ins hold calls against; of all others the names are kept
SIGNED = (
    "Builder",
    "IBuilderConfig",
    "INetworkDefinition",
    "ITensor",
    "IOptimizationProfile",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
    "IRuntimeConfig",
    "IRuntimeCache",
    "EngineInspector",
    "ITimingCache",
    "Refitter",
    "OnnxParserRefitter",
    "ILogger",
    "IProgressMonitor",
    "IHostMemory",
)
SPECIAL = ("__init__", "__enter__", "__exit__", "__del__")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--module", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(read_bindings(arguments.child)))
        return 0
    if arguments.module is not None:
        print(json.dumps(read_installed(arguments.module)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        wheels = arguments.wheels or fetch(Path(folder))
        found = {release: in_child("--child", find(wheels, version)) for release, version in WHEELS.items()}
    for module in ("tensorrt_rtx", "tensorrt_lean"):
        found[module] = in_child("--module", module)
    TABLE.write_text(table_text(found))
    print(f"wrote {TABLE}")
    return 0


def fetch(folder: Path) -> Path:
    for version in WHEELS.values():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--dest", str(folder), f"{PACKAGE}=={version}"], check=True)
    return folder


def find(folder: Path, version: str) -> Path:
    (wheel,) = folder.glob(f"{PACKAGE.replace('-', '_')}-{version}-*.whl")
    return wheel


def in_child(option: str, value: object) -> dict[str, Any]:
    """Return what a child process reads: a process can hold the libraries of one release only."""
    command = [sys.executable, __file__, option, str(value)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def read_bindings(wheel: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zipfile.ZipFile(wheel).extractall(folder)
        (library,) = folder.glob("*bindings/tensorrt*.so")
        stand_in(library, folder)
        spec = importlib.util.spec_from_file_location(library.stem, library)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return dict(names_of(module))


def read_installed(name: str) -> dict[str, Any]:
    module = importlib.import_module(name)
    return {"__version__": module.__version__, **dict(names_of(module))}


def stand_in(library: Path, folder: Path) -> None:
    """Compile and load libraries of the names that ``library`` links, with every symbol that it takes from them."""
    dynamic = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED\).*\[(lib(?:nv|tensor)[^\]]*)\]", dynamic)
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True)
    symbols = [line.split()[-1] for line in listed.stdout.splitlines()]
    symbols = [name for name in symbols if "@" not in name and not name.startswith(("Py", "_Py", "__cxa", "_ITM"))]
    functions = [f"void* {name}(void) {{ return 0; }}" for name in symbols if not name.startswith(("_ZT", "__gmon"))]
    tables = [f"void* {name}[8];" for name in symbols if name.startswith("_ZT")]
    for index, name in enumerate(needed):
        source = folder / f"{index}.c"
        source.write_text("\n".join([*functions, *tables]) if index == 0 else "int nothing;")
        target = folder / name
        subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", target, source, f"-Wl,-soname,{name}"], check=True)
        ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)


def names_of(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and description of everything public: a value, a property or a signature."""
    for name in sorted(vars(module)):
        held = getattr(module, name)
        if name.startswith("_") or type(held).__name__ == "module":
            continue
        yield name, "" if isinstance(held, type) else signature(held)
        if not isinstance(held, type):
            continue
        for member in sorted(dir(held)):
            if member not in SPECIAL and (member.startswith("_") or hasattr(object, member)):
                continue
            if member in ("name", "value") and hasattr(held, "__members__"):
                continue
            yield f"{name}.{member}", describe(held, getattr(held, member))


def describe(owner: type, held: Any) -> Any:
    if isinstance(held, property):
        told = (held.fget.__doc__ or "").strip().splitlines() if held.fget is not None else []
        kind = told[0].rpartition("-> ")[2] if told else ""
        return f"property{'' if held.fset else ' readonly'}: {kind}"
    if isinstance(held, owner):
        return int(held) if isinstance(held, SupportsInt) else ""
    return signature(held)


def signature(held: Any) -> str:
    """Return ``(name: type, …) -> type`` of each overload, separated by `` | ``."""
    lines = [line.strip() for line in (getattr(held, "__doc__", None) or "").splitlines()]
    found = [
        re.sub(r"^(?:\d+\.\s*)?\w+(?=\()", "", line) for line in lines if re.match(r"(?:\d+\.\s*)?\w+\(.*->", line)
    ]
    found = [line for line in found if not line.startswith("(*args")]
    text = " | ".join(found)
    return re.sub(r"\b(?:tensorrt\w*\.)+|nvinfer1::(?:v_1_0::)?|typing(?:_extensions)?\.|collections\.abc\.", "", text)


def table_text(found: dict[str, dict[str, Any]]) -> str:
    releases = list(WHEELS)
    names: dict[str, list[str]] = {}
    signatures: dict[str, list[list[str]]] = {}
    for name in sorted({name for release in releases for name in found[release]}):
        here = [release for release in releases if name in found[release]]
        whole = releases[releases.index(here[0]) : releases.index(here[-1]) + 1]
        names[name] = [here[0], here[-1]] if here == whole else here
        if name.partition(".")[0] in SIGNED:
            signatures[name] = spans(here, {release: found[release][name] for release in here})
    values = {
        name: spans(
            [r for r in releases if name in found[r]], {r: str(found[r][name]) for r in releases if name in found[r]}
        )
        for name in names
        if any(isinstance(found[release].get(name), int) for release in releases)
    }
    about = (
        "The TensorRT Python API by release, read from the bindings' wheels by tests/support/read_tensorrt_api.py. "
        "names: "
        "[first, last] release that has the name (a longer list: exactly those); signatures and values: [first, last, "
        "text] each; tensorrt_rtx and tensorrt_lean: what the installed module has."
    )
    parts = [f'{{"about": {json.dumps(about)},\n"releases": {json.dumps(releases)},\n"wheels": {json.dumps(WHEELS)}']
    tables: dict[str, dict[str, Any]] = {"names": names, "signatures": signatures, "values": values}
    for module in ("tensorrt_rtx", "tensorrt_lean"):
        tables[module] = {name: kept(name, text) for name, text in found[module].items()}
    for key, rows in tables.items():
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        parts.append(f'"{key}": {{\n{lines}}}')
    return ",\n".join(parts) + "}\n"


def kept(name: str, text: Any) -> Any:
    """Return what the table says of a name of one release: values, and signatures of the classes in ``SIGNED``."""
    return text if isinstance(text, int) or name == "__version__" or name.partition(".")[0] in SIGNED else ""


def spans(order: list[str], texts: dict[str, Any]) -> list[list[str]]:
    """Return [first, last, text] of each stretch of releases whose text is the same."""
    found: list[list[str]] = []
    for release in order:
        text = str(texts[release])
        if found and found[-1][2] == text:
            found[-1][1] = release
        else:
            found.append([release, release, text])
    return found


if __name__ == "__main__":
    sys.exit(main())
