"""A device takes only what its owner signed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from vitdeploy import load
from vitdeploy.artifacts import OnnxModel
from vitdeploy.artifacts.bundle import read_bundle
from vitdeploy.cli import main
from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.stages.package import Provenance, package
from vitdeploy.stages.verify import verify


def write_keys(folder: Path, name: str, seed: int) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "owner", 1)


@pytest.fixture(params=["signed.bundle", "signed.zip"])
def signed(request: pytest.FixtureRequest, tiny_onnx: OnnxModel, keys: tuple[Path, Path], tmp_path: Path) -> Path:
    return package([tiny_onnx], tmp_path / request.param, sign=keys[0]).path


def test_the_owners_bundle_is_taken_and_no_other(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    found = {check.name: check for check in verify(signed, public_key=keys[1]).checks}
    assert found["signature"].status == "passed"
    load(signed, public_key=keys[1]).close()
    _, stranger = write_keys(tmp_path, "stranger", 2)
    for use in (read_bundle, lambda path, key: verify(path, public_key=key), lambda p, k: load(p, public_key=k)):
        with pytest.raises(ArtifactError, match=r"the signature of .* is not by .*stranger\.pub"):
            use(signed, stranger)


def test_a_manifest_that_was_written_anew_is_not_the_owners(
    tiny_onnx: OnnxModel, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    ours = package([tiny_onnx], tmp_path / "ours.bundle", sign=keys[0]).path
    theirs = package([tiny_onnx], tmp_path / "theirs.bundle", provenance=Provenance(licence="mine now")).path
    shutil.copyfile(ours / "manifest.sig", theirs / "manifest.sig")
    read_bundle(theirs)  # whole, as every digest says
    with pytest.raises(ArtifactError, match="another owner signed it, or it was changed"):
        read_bundle(theirs, keys[1])


def test_what_is_not_signed_is_refused_where_a_signature_is_asked_for(
    tiny_onnx: OnnxModel, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = package([tiny_onnx], tmp_path / "plain.bundle").path
    with pytest.raises(ArtifactError, match="is not signed"):
        verify(plain, public_key=keys[1])
    checks = {check.name: check for check in verify(plain).checks}
    assert (checks["signature"].status, checks["signature"].detail) == ("unchecked", "the bundle is not signed")
    with pytest.raises(UsageError, match="is no bundle"):
        verify(tiny_onnx, public_key=keys[1])
    with pytest.raises(UsageError, match="a bundle alone is signed"):
        load(tiny_onnx, public_key=keys[1])


def test_signing_twice_gives_the_same_bytes(signed: Path, tiny_onnx: OnnxModel, keys: tuple[Path, Path]) -> None:
    again = package([tiny_onnx], signed.with_name(f"again{signed.suffix}"), sign=keys[0])
    assert (again.folder / "manifest.sig").read_bytes() == (read_bundle(signed).folder / "manifest.sig").read_bytes()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees(signed: Path, keys: tuple[Path, Path]) -> None:
    folder = read_bundle(signed).folder
    command: list[str | Path] = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys[1], "-rawin"]
    files: list[str | Path] = ["-in", folder / "manifest.json", "-sigfile", folder / "manifest.sig"]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert "Verified Successfully" in done.stdout, done.stderr


def test_what_is_no_key_is_refused_and_nothing_is_written(
    tiny_onnx: OnnxModel, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.key").write_text("secret")
    key = Ed25519PrivateKey.generate()
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (tmp_path / "locked.key").write_bytes(locked)
    other = generate_private_key(SECP256R1())
    (tmp_path / "ec.key").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for name, reason in {
        "words.key": "is no Ed25519 private key in PEM form: 'openssl genpkey",
        "locked.key": "is encrypted",
        "ec.key": "is no Ed25519 private key",
        "owner.pub": "is no Ed25519 private key",
        "absent.key": "there is no file",
    }.items():
        code = main(["package", str(tiny_onnx.path), "-o", str(tmp_path / "out"), "--sign", str(tmp_path / name)])
        assert code in (1, 2)
        assert reason in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    made = package([tiny_onnx], tmp_path / "made", sign=keys[0]).path
    with pytest.raises(UsageError, match="is no Ed25519 public key in PEM form"):
        read_bundle(made, keys[0])
