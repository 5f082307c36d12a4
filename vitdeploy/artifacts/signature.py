"""The signature of a bundle: Ed25519 (RFC 8032) over the bytes of its manifest, which has the digest of every file.

Keys are PEM files as ``openssl genpkey -algorithm ed25519`` writes them; the signature is the 64 bytes that
``openssl pkeyutl -verify -rawin`` takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.errors import ArtifactError, UsageError
from vitdeploy.reading import read_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"
BYTES = 64
LARGEST_KEY = 65536


def read_private_key(path: Path | str) -> Ed25519PrivateKey:
    """Read the key that signs.

    Raises:
        UsageError: It is no Ed25519 private key, or is encrypted.
        ArtifactError: The file cannot be read.
        ModuleNotFoundError: cryptography is not installed.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = read_bytes(path, LARGEST_KEY)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise UsageError(f"the key {str(path)!r} is encrypted: decrypt it with 'openssl pkey' first") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(_no_key(path, "private", "openssl genpkey -algorithm ed25519 -out owner.key")) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(_no_key(path, "private", "openssl genpkey -algorithm ed25519 -out owner.key"))
    return key


def read_public_key(path: Path | str) -> Ed25519PublicKey:
    """Read the key that a signature is checked with.

    Raises:
        UsageError: It is no Ed25519 public key.
        ArtifactError: The file cannot be read.
        ModuleNotFoundError: cryptography is not installed.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read_bytes(path, LARGEST_KEY)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(_no_key(path, "public", "openssl pkey -in owner.key -pubout -out owner.pub")) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(_no_key(path, "public", "openssl pkey -in owner.key -pubout -out owner.pub"))
    return key


def check_signature(manifest: Path, public_key: Path | str, path: Path) -> None:
    """Make sure that the owner of a key signed this manifest; ``path`` is what an error names.

    Raises:
        ArtifactError: There is no signature beside the manifest, or it is of another key or another manifest.
        UsageError: ``public_key`` is no Ed25519 public key.
    """
    from cryptography.exceptions import InvalidSignature

    key = read_public_key(public_key)
    signature = manifest.with_name(SIGNATURE)
    if not signature.is_file():
        raise ArtifactError(f"{str(path)!r} is not signed, expected a signature by {str(public_key)!r}")
    try:
        key.verify(read_bytes(signature, BYTES), read_bytes(manifest))
    except InvalidSignature as error:
        raise ArtifactError(
            f"the signature of {str(path)!r} is not by {str(public_key)!r}: another owner signed it, or it was changed"
        ) from error


def _no_key(path: Path | str, kind: str, command: str) -> str:
    return f"{str(path)!r} is no Ed25519 {kind} key in PEM form: '{command}' writes one"
