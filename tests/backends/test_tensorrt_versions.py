from __future__ import annotations

from pathlib import Path

import pytest
from machine import fake_gpu, machine

from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends import get_backend
from vitdeploy.backends.tensorrt_versions import compute_capability_key, find_problems, parse_version
from vitdeploy.errors import BackendError
from vitdeploy.sessions import BuildTarget

JETPACK_6 = "6.2 (L4T 36.4.3)"
JETPACK_7 = "7.2 (L4T 39.2.0)"


def test_version_is_its_leading_numbers() -> None:
    assert parse_version("10.13.3.9.post1") == (10, 13, 3, 9)
    assert parse_version("11.1.0rc1") == (11, 1, 0)
    assert parse_version("unknown") == ()
    assert compute_capability_key("8.9") < compute_capability_key("12.0")


@pytest.mark.parametrize(
    ("version", "capability", "jetpack", "message"),
    [
        ("8.6.2", "8.7", None, "too old, expected 10.3 or newer"),
        ("10.2.0", "8.9", None, "TensorRT 10.2.0 is too old"),
        ("10.4.0", "8.9", None, "miscompiles the attention of vision transformers even in FP32: use 10.3, or 10.5"),
        ("10.13.3.9", "8.7", None, "holds no kernels for sm_87"),
        ("11.1.0", "7.0", None, "needs compute capability 7.5 or higher, this GPU has 7.0: pip install 'tensorrt<11'"),
        ("11.4.1", "8.7", JETPACK_6, "does not serve JetPack 6"),
    ],
)
def test_unfit_releases_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    model: OnnxModel,
    engine_path: Path,
    version: str,
    capability: str,
    jetpack: str | None,
    message: str,
) -> None:
    there = machine(capability, jetpack)
    refusal = find_problems(version, there)[0]
    assert refusal.severity == "refuse"
    assert message in refusal.text
    assert "\n" not in refusal.text
    release = "11.1" if version.startswith("11") else "10.3"
    fake_gpu(monkeypatch, release, capability, version=version, jetpack=jetpack)
    with pytest.raises(BackendError) as caught:
        get_backend("tensorrt").build(model, engine_path, BuildTarget())
    assert str(caught.value) == refusal.text
    assert not engine_path.exists()


@pytest.mark.parametrize(
    ("version", "capability", "jetpack", "message"),
    [
        ("11.1.0", "11.0", JETPACK_7, "does not support JetPack before 11.4.1"),
        ("10.13.3.9", "11.0", JETPACK_7, "FP16 unreliably on Thor"),
    ],
)
def test_doubtful_releases_are_noted(version: str, capability: str, jetpack: str, message: str) -> None:
    (problem,) = find_problems(version, machine(capability, jetpack))
    assert problem.severity == "warn"
    assert message in problem.text


@pytest.mark.parametrize(
    ("version", "capability", "jetpack"),
    [
        ("10.3.0", "8.7", JETPACK_6),
        ("10.5.0", "8.9", None),
        ("10.13.3.9", "8.9", None),
        ("10.16.2.10", "8.7", JETPACK_7),
        ("11.1.0", "12.0", None),
        ("11.4.1", "8.7", JETPACK_7),
        ("10.16.0", None, None),
    ],
)
def test_good_releases_have_no_problem(version: str, capability: str | None, jetpack: str | None) -> None:
    assert find_problems(version, machine(capability, jetpack)) == []


def test_warning_is_noted_by_a_build(monkeypatch: pytest.MonkeyPatch, model: OnnxModel, engine_path: Path) -> None:
    notes = []

    class Noting:
        def task(self, description, total=None):
            from vitdeploy.progress import SILENT

            return SILENT.task(description, total)

        def note(self, text) -> None:
            notes.append(text)

    fake_gpu(monkeypatch, "10.13", "11.0", version="10.13.3.9")
    get_backend("tensorrt").build(model, engine_path, BuildTarget(), Noting())
    assert "unreliably on Thor" in notes[0]
