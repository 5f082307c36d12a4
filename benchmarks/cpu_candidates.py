"""What ``benchmarks/cpu.py`` compares: every candidate as a file and a runtime, made from one set of weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matrix import made_images
from numpy.typing import NDArray

from vitdeploy.artifacts import OnnxModel, read_onnx, write_checkpoint
from vitdeploy.backends.lowering import lower
from vitdeploy.backends.openvino import computes_bf16
from vitdeploy.datasets import batches, open_dataset
from vitdeploy.quantization.plan import Profile
from vitdeploy.quantization.request import QuantizeOptions
from vitdeploy.records import Manifest, Preprocess
from vitdeploy.sources.load import load_source
from vitdeploy.stages.export import export
from vitdeploy.stages.quantize import quantize

Arithmetic = Literal["fp32", "bf16", "int8"]
BASELINE = "ONNX Runtime, our FP32"
ORT_INT8, OV_INT8, OV_BF16 = "ONNX Runtime, our INT8", "OpenVINO, our INT8", "OpenVINO, our INT8 beside BF16"
ORT_LOWERED = f"{ORT_INT8}, lowered"
ORT_DEFAULT, OV_DEFAULT = f"{ORT_INT8} by default", f"{OV_INT8} by default"
NNCF_INT8 = "OpenVINO, NNCF INT8"
NNCF_NO_SUMS = f"{NNCF_INT8}, sums in FP32"
OURS = (ORT_INT8, ORT_LOWERED, ORT_DEFAULT, OV_INT8, OV_BF16, OV_DEFAULT)
ORT_OURS, OV_OURS = (ORT_DEFAULT, ORT_LOWERED, ORT_INT8), (OV_DEFAULT, OV_INT8)
"""Which of ours others are held against: the first that there is."""
CHECKED = 16
GEMM = 2048


@dataclass(frozen=True)
class Candidate:
    """A file and what runs it, what most of its products are computed in, and which of ours it is held against.

    That is the first of ``against`` that takes part.
    """

    runtime: str
    file: Path
    arithmetic: Arithmetic
    against: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """The weights of timm's module as ours and as a graph, with images to calibrate and to compare on."""

    module: Any
    checkpoint: Path
    model: OnnxModel
    folder: Path
    calibration: str
    images: NDArray[np.float32]

    @classmethod
    def make(cls, name: str, folder: Path, calibrated: int) -> Sources:
        """Redraw the weights of timm's model of that name, load and export them, and make images.

        An exported graph that is in the folder is taken as it is: weights and images are always the same.
        """
        import timm
        from safetensors.torch import save_file

        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
        from redrawing import redraw

        module = redraw(timm.create_model(name, pretrained=False)).eval()
        checkpoint, graph = folder / "model.safetensors", folder / "fp32.onnx"
        if not graph.exists():
            weights = folder / "timm.safetensors"
            save_file({key: value.contiguous() for key, value in module.state_dict().items()}, weights)
            loaded = load_source(name, weights=weights)
            tensors = {key: tensor.detach().numpy() for key, tensor in loaded.module.state_dict().items()}
            manifest = Manifest(kind="checkpoint", model=loaded.spec, preprocess=loaded.preprocess)
            write_checkpoint(checkpoint, tensors, manifest)
            export(checkpoint, graph)
        model = read_onnx(graph)
        assert model.manifest.preprocess is not None
        spec = model.manifest.preprocess
        calibration = made_images(folder / "calibration", calibrated, 1, spec)
        unseen = open_dataset(made_images(folder / "unseen", CHECKED, 3, spec))
        images = np.concatenate(list(batches(unseen, spec, 8)))
        return cls(module, checkpoint, model, folder, calibration, images)

    @property
    def preprocess(self) -> Preprocess:
        assert self.model.manifest.preprocess is not None
        return self.model.manifest.preprocess

    def pixels(self) -> list[NDArray[np.float32]]:
        """The calibration images, one by one, as the graph takes them."""
        return list(batches(open_dataset(self.calibration), self.preprocess, 1))


Makers = dict[str, Callable[[], Candidate]]


def makers(sources: Sources, batch: int) -> Makers:
    """Return title → what makes a candidate; those that other packages make fail where these are not installed."""
    onnx, folder = sources.model.path, sources.folder

    def pytorch(mode: str, arithmetic: Arithmetic, *, bf16: bool = False) -> Callable[[], Candidate]:
        against = (OV_BF16,) if bf16 else OV_OURS
        return lambda: Candidate(f"pytorch:{mode}", sources.checkpoint, arithmetic, against)

    def onnxruntime(file: Callable[[], Path], arithmetic: Arithmetic) -> Callable[[], Candidate]:
        return lambda: Candidate("onnxruntime", file(), arithmetic, ORT_OURS)

    def openvino(file: Callable[[], Path], arithmetic: Arithmetic, bf16: bool = False) -> Callable[[], Candidate]:
        runtime, against = ("openvino:bf16", (OV_BF16,)) if bf16 else ("openvino", OV_OURS)
        return lambda: Candidate(runtime, file(), arithmetic, against)

    def with_threads(runtime: str, file: Callable[[], Path], against: str) -> Callable[[], Candidate]:
        return lambda: Candidate(runtime, file(), "int8", (against,))

    def once(name: str, make: Callable[[Path], None]) -> Callable[[], Path]:
        def file() -> Path:
            path = folder / name
            if not path.exists():
                make(path)
            return path

        return file

    def ours(target: Literal["onnxruntime", "openvino"]) -> Callable[[], Path]:
        profile: Profile = "mha" if target == "openvino" else "linear"
        return once(f"{target}.onnx", lambda path: our_int8(sources, path, target, profile))

    def full(target: Literal["onnxruntime", "openvino"]) -> Callable[[], Path]:
        return once(f"{target}.full.onnx", lambda path: our_int8(sources, path, target, "full"))

    def by_default(target: Literal["onnxruntime", "openvino"]) -> Callable[[], Path]:
        return once(f"{target}.default.onnx", lambda path: our_default(sources, path, target))

    timm_graph = once(f"timm.{batch}.onnx", lambda path: timm_export(sources, path, batch))
    linear = once("openvino.linear.onnx", lambda path: our_int8(sources, path, "openvino", "linear"))
    nncf_default = once("nncf.xml", lambda path: nncf_int8(sources, path))
    nncf_accurate = once("nncf.transformers.xml", lambda path: nncf_int8(sources, path, for_transformers=True))
    static = once("static.onnx", lambda path: own_static(sources, path))
    dynamic = once("dynamic.onnx", lambda path: own_dynamic(sources, path))
    convolutions = sum(node.op_type == "Conv" for node in sources.model.load().graph)
    more = {
        f"{ORT_INT8} of profile full": onnxruntime(full("onnxruntime"), "int8"),
        f"{OV_INT8} of profile full": openvino(full("openvino"), "int8"),
        ORT_DEFAULT: onnxruntime(by_default("onnxruntime"), "int8"),
        OV_DEFAULT: openvino(by_default("openvino"), "int8"),
    }
    return (more if convolutions > 1 else {}) | {
        BASELINE: onnxruntime(lambda: onnx, "fp32"),
        ORT_INT8: onnxruntime(ours("onnxruntime"), "int8"),
        ORT_LOWERED: onnxruntime(once("onnxruntime.lowered.onnx", lambda path: our_lowered(sources, path)), "int8"),
        OV_INT8: openvino(ours("openvino"), "int8"),
        OV_BF16: openvino(ours("openvino"), "int8", bf16=True),
        f"{ORT_INT8}, threads pinned": with_threads("onnxruntime:pinned", ours("onnxruntime"), ORT_INT8),
        f"{ORT_INT8}, threads that sleep": with_threads("onnxruntime:sleeping", ours("onnxruntime"), ORT_INT8),
        f"{OV_INT8} of profile linear": openvino(linear, "int8"),
        f"{OV_INT8}, threads pinned": with_threads("openvino:pinned", ours("openvino"), OV_INT8),
        "OpenVINO, our FP32": openvino(lambda: onnx, "fp32"),
        "OpenVINO, our FP32 in BF16": openvino(lambda: onnx, "bf16", bf16=True),
        "PyTorch eager FP32": pytorch("eager", "fp32"),
        "PyTorch compile FP32": pytorch("compile", "fp32"),
        "PyTorch autocast BF16": pytorch("autocast-bf16", "bf16", bf16=True),
        "PyTorch, torchao INT8": pytorch("torchao-int8", "int8"),
        "ONNX Runtime, timm's export FP32": onnxruntime(timm_graph, "fp32"),
        "OpenVINO, timm's export FP32": openvino(timm_graph, "fp32"),
        "ONNX Runtime, its own static INT8": onnxruntime(static, "int8"),
        "ONNX Runtime, its own dynamic INT8": onnxruntime(dynamic, "int8"),
        "ONNX Runtime, optimum's INT8": onnxruntime(
            once("optimum.onnx", lambda path: optimum_int8(sources, path)), "int8"
        ),
        NNCF_INT8: openvino(nncf_default, "int8"),
        f"{NNCF_INT8} for transformers": openvino(nncf_accurate, "int8"),
        f"{NNCF_INT8} for transformers beside BF16": openvino(nncf_accurate, "int8", bf16=True),
    }


def beside_nncf(sources: Sources) -> dict[str, Path]:
    """Return title → file of our INT8 for OpenVINO, NNCF's at its defaults, and that with sums in FP32."""
    files = {title: makers(sources, 1)[title]().file for title in (OV_INT8, NNCF_INT8)}
    path = sources.folder / "nncf.sums.xml"
    if not path.exists():
        nncf_int8(sources, path, sums=False)
    return {**files, NNCF_NO_SUMS: path}


def make_all(sources: Sources, batch: int, without: list[str]) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Return the candidates, and why another is missing."""
    found: dict[str, Candidate] = {}
    reasons: dict[str, str] = {}
    for title, make in makers(sources, batch).items():
        if title != BASELINE and any(fnmatch(title, pattern) for pattern in without):
            reasons[title] = "--without"
            continue
        if "BF16" in title and not computes_bf16():
            reasons[title] = "the processor does not multiply BF16"
            continue
        try:
            found[title] = make()
        except Exception as error:  # a peer that fails is a row that says so
            reasons[title] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return found, reasons


def gemms(folder: Path) -> dict[str, tuple[str, Path, Arithmetic]]:
    """Return title → (runtime, file, arithmetic) of one large product with constant weights, [2048, 2048] twice."""
    plain, integer = write_gemm(folder / "gemm.onnx", False), write_gemm(folder / "gemm.int8.onnx", True)
    halved: dict[str, tuple[str, Path, Arithmetic]] = {"GEMM BF16, OpenVINO": ("openvino:bf16", plain, "bf16")}
    return (halved if computes_bf16() else {}) | {
        "GEMM FP32, ONNX Runtime": ("onnxruntime", plain, "fp32"),
        "GEMM FP32, OpenVINO": ("openvino", plain, "fp32"),
        "GEMM INT8, ONNX Runtime": ("onnxruntime", integer, "int8"),
        "GEMM INT8, OpenVINO": ("openvino", integer, "int8"),
    }


def write_gemm(path: Path, integers: bool) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (GEMM, GEMM)).astype(np.int8)
    nodes, factors = [], ["x", "w"]
    constants = {"w": weight.astype(np.float32)}
    if integers:
        constants = {
            "w": weight,
            "scale": np.float32(0.02),
            "zero": np.uint8(128),
            "steps": np.full(GEMM, 0.01, np.float32),
            "zeros": np.zeros(GEMM, np.int8),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "steps", "zeros"], ["wd"], axis=1),
        ]
        factors = ["xd", "wd"]
    nodes.append(helper.make_node("MatMul", factors, ["y"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [GEMM, GEMM]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "gemm", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def our_int8(sources: Sources, path: Path, target: Literal["onnxruntime", "openvino"], profile: Profile) -> None:
    options = QuantizeOptions(effort="fast", cpu="auto", profile=profile)
    quantize(sources.model, path, precision="int8", target=target, calibration=sources.calibration, options=options)


def our_default(sources: Sources, path: Path, target: Literal["onnxruntime", "openvino"]) -> None:
    options = QuantizeOptions(cpu="auto")
    quantize(sources.model, path, precision="int8", target=target, calibration=sources.calibration, options=options)


def our_lowered(sources: Sources, path: Path) -> None:
    """Lower our graph for ONNX Runtime on this machine.

    Raises:
        ValueError: No step gained.
    """
    if lower(read_onnx(path.with_name("onnxruntime.onnx"))) is None:
        raise ValueError("no step of lowering is faster on this machine")


def timm_export(sources: Sources, path: Path, batch: int) -> None:
    """Export as timm does by itself: its script at its defaults, which fixes the batch."""
    from timm.utils.onnx import onnx_export

    onnx_export(sources.module, str(path), batch_size=batch, check=False, input_names=["input"])


def own_static(sources: Sources, path: Path) -> None:
    """Quantize with onnxruntime.quantization at its defaults for transformers: Q/DQ, per channel, min-max."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = iter({"input": image} for image in sources.pixels())

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    quantize_static(
        str(sources.model.path),
        str(path),
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def own_dynamic(sources: Sources, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(sources.model.path), str(path), per_channel=True, weight_type=QuantType.QInt8)


def optimum_int8(sources: Sources, path: Path) -> None:
    """Quantize with optimum's preset for AVX-512 VNNI, which is dynamic; the file lies at ``path`` in the end."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    quantizer = ORTQuantizer.from_pretrained(str(sources.folder), file_name=sources.model.path.name)
    made = sources.folder / "by-optimum"
    quantizer.quantize(save_dir=made, quantization_config=AutoQuantizationConfig.avx512_vnni(is_static=False))
    next(made.glob("*.onnx")).rename(path)


def nncf_int8(sources: Sources, path: Path, *, for_transformers: bool = False, sums: bool = True) -> None:
    """Quantize with NNCF at its defaults, or in its mode for transformers with its more accurate preset.

    Without ``sums``, what is added stays in floating point.
    """
    import nncf
    import openvino

    pixels = sources.pixels()
    more = {"model_type": nncf.ModelType.TRANSFORMER, "preset": nncf.QuantizationPreset.MIXED}
    quantized = nncf.quantize(
        openvino.Core().read_model(str(sources.model.path)),
        nncf.Dataset(pixels),
        subset_size=len(pixels),
        **(more if for_transformers else {}),
        **({} if sums else {"ignored_scope": nncf.IgnoredScope(types=["Add"])}),
    )
    openvino.save_model(quantized, str(path), compress_to_fp16=False)
