"""OnnxModel: an ``.onnx`` file with the manifest and golden samples in ``metadata_props``."""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.artifacts.base import Artifact
from vitdeploy.artifacts.digest import onnx_digest, release
from vitdeploy.artifacts.files import atomic_path
from vitdeploy.artifacts.golden import Golden
from vitdeploy.artifacts.manifests import check_payload, manifest_text, parse_manifest
from vitdeploy.artifacts.other_files import not_an_artifact
from vitdeploy.errors import ArtifactError
from vitdeploy.reading import is_safetensors, missing, require_regular, require_text
from vitdeploy.records import Manifest
from vitdeploy.wording import adoption

if TYPE_CHECKING:
    import onnx_ir as ir

METADATA_KEY = "vitdeploy"
GOLDEN_KEY = "vitdeploy.golden"
EXTERNAL_DATA_LIMIT = 1_500_000_000
EXTERNAL_TENSOR_MINIMUM = 1024
EXTERNAL_ALIGNMENT = 4096
IR_VERSION = 10
LINK = "vitdeploy.link"
"""Where an external tensor lies behind a link: the name by which the graph knows its file."""
LARGEST_PROTOBUF = 1 << 31
LARGEST_SPARSE = 1 << 28
"""Elements of a sparse weight when it is written out, 1 GB in float32."""


@dataclass(frozen=True, eq=False, repr=False)
class OnnxModel(Artifact):
    """A verified ONNX file.

    ``golden`` are inputs and outputs that travel with the graph; a build is checked against them.
    """

    golden: Golden | None = None

    def load(self) -> ir.Model:
        """Return a fresh IR of the graph that the caller may change; verified again against the digest."""
        model = load_ir(self.path)
        check_payload(self.manifest, _digest(model, self.path), self.path, _readopt(self.path))
        return model

    def external_data(self) -> tuple[Path, ...]:
        """Return the files beside the ``.onnx`` that hold its weights, if it is larger than protobuf allows.

        Their names are those that the graph knows, also where they are links.
        """
        import onnx_ir as ir

        tensors = [value.const_value for value in load_ir(self.path).graph.initializers.values()]
        names = {
            str(tensor.meta.get(LINK, tensor.location)) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)
        }
        return tuple(sorted(self.path.parent / name for name in names))


def write_onnx(path: Path, model: ir.Model, manifest: Manifest, golden: Golden | None = None) -> OnnxModel:
    """Write graph, manifest and golden samples atomically and return the artifact.

    Weights above 1.5 GB go into ``<stem>.<digest>.data`` beside it: written and synced first, the ``.onnx`` renamed
    last, data that the replaced file pointed to removed after.
    """
    import onnx_ir as ir

    path = Path(path)
    golden_text = golden.to_text() if golden is not None else None
    golden_sha = hashlib.sha256(golden_text.encode()).hexdigest() if golden_text is not None else None
    digest = onnx_digest(model)
    sealed = manifest.model_copy(update={"golden_sha256": golden_sha}).sealed(digest)
    model.metadata_props[METADATA_KEY] = manifest_text(sealed)
    model.metadata_props.pop(GOLDEN_KEY, None)
    if golden_text is not None:
        model.metadata_props[GOLDEN_KEY] = golden_text
    replaced = _external_files(path)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size <= EXTERNAL_DATA_LIMIT:
        _hold_in_memory(model, size + 1)
        with atomic_path(path) as temporary:
            ir.save(model, temporary)
        keep: set[Path] = set()
    else:
        data = path.with_name(f"{path.stem}.{digest[:12]}.data")
        _write_external(model, path, data)
        keep = {data}
    for old in replaced - keep:
        old.unlink(missing_ok=True)
    return OnnxModel(path, sealed, golden)


def _hold_in_memory(model: ir.Model, below_bytes: int) -> None:
    """Read the smaller tensors that still lie in another model's data file, which the new file must not need."""
    import onnx_ir as ir

    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes < below_bytes:
            value.const_value = ir.Tensor(tensor.numpy().copy(), tensor.dtype, shape=tensor.shape, name=name)


def _write_external(model: ir.Model, path: Path, data: Path) -> None:
    """Write large initializers to ``data``, then the graph that points there, as ``model`` itself then does."""
    import onnx_ir as ir

    _hold_in_memory(model, EXTERNAL_TENSOR_MINIMUM)
    places: dict[str, tuple[int, int]] = {}
    with atomic_path(data) as temporary, temporary.open("wb") as stream:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < EXTERNAL_TENSOR_MINIMUM:
                continue
            stream.seek(-stream.tell() % EXTERNAL_ALIGNMENT, 1)
            places[name] = (stream.tell(), tensor.nbytes)
            stream.write(tensor.tobytes())
            release(tensor)
    for name, (offset, length) in places.items():
        value = model.graph.initializers[name]
        old = value.const_value
        assert old is not None
        value.const_value = ir.ExternalTensor(
            data.name,
            offset,
            length,
            old.dtype,
            shape=ir.Shape(old.shape.numpy()),
            name=name,
            base_dir=str(path.parent),
        )
    with atomic_path(path) as temporary:
        ir.save(model, temporary)


def read_onnx(path: Path) -> OnnxModel:
    """Open an ONNX file and verify manifest, graph and golden samples.

    Raises:
        ArtifactError: It is missing, is no ONNX file, has no manifest (the line says how to adopt it), or was changed.
    """
    path = Path(path)
    require_text(path)
    model = load_ir(path)
    if METADATA_KEY not in model.metadata_props:
        raise ArtifactError(
            f"{str(path)!r} has no vitdeploy manifest, so its preprocessing is unknown: {adoption(path)} adopts it"
        )
    manifest = parse_manifest(model.metadata_props[METADATA_KEY], path)
    check_payload(manifest, _digest(model, path), path, _readopt(path))
    golden = None
    if manifest.golden_sha256 is not None:
        text = model.metadata_props.get(GOLDEN_KEY, "")
        if hashlib.sha256(text.encode()).hexdigest() != manifest.golden_sha256:
            raise ArtifactError(f"the golden samples in {str(path)!r} do not match their digest: the file is damaged")
        golden = Golden.from_text(text)
    return OnnxModel(path, manifest, golden)


def manifest_in_graph(model: ir.Model, path: Path) -> Manifest | None:
    """Return what the manifest in a graph says, even where the graph was edited since; None where it has none.

    Raises:
        ArtifactError: The manifest is damaged.
    """
    text = model.metadata_props.get(METADATA_KEY)
    return None if text is None else parse_manifest(text, path)


def load_ir(path: Path) -> ir.Model:
    """Parse any ONNX file, foreign ones too.

    Raises:
        ArtifactError: It is missing, is no ONNX file, is truncated, or its external data is absent.
    """
    import onnx
    import onnx_ir as ir
    from google.protobuf.message import DecodeError

    path = Path(path)
    if path.is_dir() and (refusal := not_an_artifact(path, "an ONNX model")) is not None:
        raise refusal
    if require_regular(path).st_size >= LARGEST_PROTOBUF:
        raise ArtifactError(f"{str(path)!r} is larger than the 2 GB that an ONNX file can have: it is damaged")
    try:
        proto = onnx.load_model(path, format="protobuf", load_external_data=False)  # whatever its name ends in
        if not proto.graph.node or not proto.graph.output:
            raise ArtifactError(f"{str(path)!r} is not an ONNX model: it has no nodes or no outputs")
        _write_out_sparse(proto.graph, path)
        model = ir.serde.deserialize_model(proto)
        if not all(isinstance(text, str) for text in (*model.metadata_props, *model.metadata_props.values())):
            raise ValueError("a string is not UTF-8")
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _resolve_external(value.const_value, path)
        return model
    except OSError as error:
        raise missing(path, error) from error
    except ArtifactError:
        raise
    except (DecodeError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if is_safetensors(path):
            raise ArtifactError(
                f"{str(path)!r} holds weights, expected an ONNX model: "
                f"vd.export({str(path)!r}, {f'{path.stem}.onnx'!r}) makes one"
            ) from error
        refusal = not_an_artifact(path, "an ONNX model")
        raise refusal or ArtifactError(f"{str(path)!r} is not an ONNX file, or is damaged") from error


def _write_out_sparse(graph: Any, path: Path) -> None:
    """Turn sparse weights into plain ones, in place: onnx_ir reads no others.

    Raises:
        ArtifactError: One is too large for that, or has values outside of its shape.
    """
    from onnx import numpy_helper

    for sparse in graph.sparse_initializer:
        name, shape = sparse.values.name, tuple(sparse.dims)
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        if math.prod(shape) > LARGEST_SPARSE:
            raise ArtifactError(f"{str(path)!r} has a sparse weight {name!r} of shape {shape}, too large to write out")
        flat = places if places.ndim < 2 else places @ np.cumprod((1, *shape[:0:-1]))[::-1]
        inside = places.ndim < 2 or (places.shape[1] == len(shape) and bool((places < shape).all()))
        if not inside or flat.shape != values.shape or ((places < 0).any() or (flat >= math.prod(shape)).any()):
            raise ArtifactError(
                f"{str(path)!r} is damaged: values of the sparse weight {name!r} lie outside of {shape}"
            )
        dense = np.zeros(math.prod(shape), values.dtype)
        dense[flat] = values
        graph.initializer.append(numpy_helper.from_array(dense.reshape(shape), name))
    del graph.sparse_initializer[:]


def _digest(model: ir.Model, path: Path) -> str:
    try:
        return onnx_digest(model)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"{str(path)!r} is not a whole ONNX file: it is damaged") from error


def _resolve_external(tensor: Any, path: Path) -> Any:
    """Return an external tensor of the graph in ``path`` as one that can be read from where its file is.

    Raises:
        ArtifactError: Its file is absent, too short, or lies outside of the graph's folder.
    """
    location = PurePath(tensor.location)
    if location.is_absolute() or ".." in location.parts:
        raise ArtifactError(
            f"{str(path)!r} names its weights as {str(location)!r}, which lies outside its folder: refused; put the "
            "file beside it and save the model again"
        )
    tensor.base_dir = str(path.parent)
    data = Path(tensor.path)
    if not data.is_file():
        raise ArtifactError(f"{str(path)!r} needs its weights in {str(data)!r}, and there is no such file")
    tensor = _behind_links(tensor, data, path)
    if tensor.length not in (None, tensor.nbytes):
        raise ArtifactError(
            f"{str(path)!r} is damaged: its weight {tensor.name!r} is said to have {tensor.length} bytes in "
            f"{data.name!r}, and its shape takes {tensor.nbytes}"
        )
    end = (tensor.offset or 0) + tensor.nbytes
    if data.stat().st_size < end:
        raise ArtifactError(f"{str(data)!r} is truncated: {data.stat().st_size} bytes, expected at least {end}")
    return tensor


def _behind_links(tensor: Any, data: Path, path: Path) -> Any:
    """Return an external tensor whose place is that of the file itself where ``data`` is a link out of its folder.

    Graph and weights may both be links into one folder, as in Hugging Face's cache. Any other link could make a model
    from elsewhere read whatever lies on this machine, and a second name of a file the same.
    """
    import onnx_ir as ir

    real, folder = Path(os.path.realpath(data)), Path(os.path.realpath(path.parent))
    if real.stat().st_nlink > 1:
        raise ArtifactError(
            f"{str(data)!r}, which holds the weights of {str(path)!r}, has other names on this disk (hard links), so "
            "whose it is cannot be told: refused; put a copy in its place"
        )
    if real.is_relative_to(folder):
        return tensor
    if real.parent != Path(os.path.realpath(path)).parent:
        raise ArtifactError(
            f"{str(data)!r}, which holds the weights of {str(path)!r}, is a link to {str(real)!r}, outside the folder "
            "of the model: refused; put a copy in place of the link"
        )
    moved = ir.ExternalTensor(
        real.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        base_dir=str(real.parent),
    )
    moved.meta[LINK] = str(tensor.location)
    return moved


def _external_files(path: Path) -> set[Path]:
    import onnx_ir as ir

    if not path.exists():
        return set()
    try:
        model = load_ir(path)
    except ArtifactError:
        return set()
    tensors: list[Any] = [value.const_value for value in model.graph.initializers.values()]
    files = {Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return {file for file in files if re.fullmatch(rf"{re.escape(path.stem)}\.[0-9a-f]{{12}}\.data", file.name)}


def _readopt(path: Path) -> str:
    return f"if the edit is yours, {adoption(path, str(path))} adopts it again, prepared as it says itself"
