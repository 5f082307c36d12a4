from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends import get_backend, names
from vitdeploy.errors import BackendError, UsageError
from vitdeploy.sessions import BuildTarget


def test_every_backend_is_known_by_its_name() -> None:
    for name in names():
        assert get_backend(name).name == name
        assert get_backend(name) is get_backend(name)


def test_unknown_backend_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no backend 'tvm', expected one of pytorch, onnxruntime, tensorrt"):
        get_backend("tvm")


def test_available_backends_tell_their_version() -> None:
    for name in names():
        backend = get_backend(name)
        reason = backend.unavailable()
        if reason is None:
            assert backend.version()[0].isdigit()
        else:
            assert "pip install" in reason or "apt-get" in reason
            assert backend.can_run() == reason


SCRIPT = """
import sys
sys.modules["torch"] = None
from vitdeploy.backends import get_backend
from vitdeploy.errors import BackendError
backend = get_backend("pytorch")
assert "pip install 'vitdeploy[torch]'" in backend.unavailable(), backend.unavailable()
for call in (backend.version, lambda: backend.open(None), lambda: backend.build(None, None, None)):
    try:
        call()
    except BackendError as error:
        assert "pip install 'vitdeploy[torch]'" in str(error)
    else:
        raise AssertionError("not refused")
for name in ("onnxruntime", "openvino", "null", "tensorrt", "tensorrt-rtx"):
    get_backend(name).unavailable()
import vitdeploy.stages.build
from vitdeploy.stages.doctor import doctor
finding = next(f for f in doctor() if f.name == "pytorch")
assert finding.status == "missing" and finding.remedy == "pip install 'vitdeploy[torch]'", finding
"""


def test_without_torch_all_else_works_and_pytorch_names_its_package() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=120)


def test_listing_backends_loads_no_runtime() -> None:
    script = (
        "import sys, vitdeploy.backends as b; b.names(); "
        "[b.get_backend(n) for n in b.names() if n != 'pytorch']; "
        "loaded = {'torch', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'onnx'} & set(sys.modules); "
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_absent_backend_cannot_build(monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"pip install 'vitdeploy\[tensorrt\]'"):
        get_backend("tensorrt").build(model, engine_path, BuildTarget())
    assert not engine_path.exists()
