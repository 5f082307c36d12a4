"""A graph that resizes whole images computes what Pillow and the graph at its own size compute, wherever it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from notes import Notes
from numpy.typing import NDArray
from PIL import Image

from vitdeploy import batch_predictor, load
from vitdeploy.artifacts import OnnxModel
from vitdeploy.backends import get_backend
from vitdeploy.backends.onnxruntime import open_graph
from vitdeploy.cli import main
from vitdeploy.errors import BuildError, DataError, GraphError, UsageError
from vitdeploy.graph.fuse_preprocess import fuse_preprocess
from vitdeploy.graph.legality import findings
from vitdeploy.measure.accuracy import run_batch
from vitdeploy.preprocess import to_input, to_pixels
from vitdeploy.records import Precision, Preprocess
from vitdeploy.records.preprocess import Frame, InputForm
from vitdeploy.sessions import BuildTarget
from vitdeploy.stages.bench import BenchOptions, bench
from vitdeploy.stages.export import ExportOptions, export
from vitdeploy.stages.quantize import quantize
from vitdeploy.stages.triton import write_triton_repository
from vitdeploy.stages.verify import verify

pytestmark = pytest.mark.slow

PLAIN = Preprocess(size=(32, 37), resize_size=40, scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))
SPECS = {
    "bicubic": PLAIN,
    "bilinear, crop rounded down": PLAIN.model_copy(update={"interpolation": "bilinear", "crop_offset": "floor"}),
    "squash": PLAIN.model_copy(update={"resize": "squash", "resize_size": None, "crop": "none"}),
    "squash and crop": PLAIN.model_copy(update={"resize": "squash", "resize_size": (41, 44)}),
    "bgr": PLAIN.model_copy(update={"channel_order": "bgr"}),
}
SIZES = [(97, 131), (131, 97), (40, 40), (50, 51), (20, 25), (480, 640)]


def _images(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return images of blocks, whose edges make bicubic overshoot."""
    rng = np.random.default_rng(height * width)
    small = rng.integers(0, 256, (count, max(height // 4, 2), max(width // 4, 2), 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.NEAREST)) for one in small]
    )


def _by_pillow(images: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.uint8]:
    return np.stack([to_pixels(Image.fromarray(one), spec) for one in images])


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("form", ["uint8-nhwc", "uint8-nchw"])
@pytest.mark.parametrize("fixed", [False, True])
def test_the_graph_gives_the_pixels_of_pillow(name: str, form: InputForm, fixed: bool) -> None:
    spec = SPECS[name]
    for height, width in SIZES:
        if spec.resize == "squash" and height == width:
            continue  # Pillow 13 has another order of the passes where height shrinks far more than width
        text = (
            '<ir_version: 10, opset_import: ["": 17]> g (float[batch,3,32,37] input) '
            "=> (float[batch,3,32,37] logits) { [same] logits = Identity(input) }"
        )
        model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
        frame: Frame = (height, width) if fixed else "any"
        fused = fuse_preprocess(model, spec, form, frame)
        assert (fused.frame, fused.pixel_size) == (frame, frame if fixed else None)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        assert {one.subject for one in findings(model)} == (set() if fixed else {"Shape", "Range"})
        images = _images(2, height, width)
        with open_graph(model) as session:
            (found,) = session.run({"input": to_input(images, fused)}).values()
        expected = _by_pillow(images, spec).transpose(0, 3, 1, 2)
        if spec.channel_order == "bgr":
            expected = expected[:, ::-1]
        apart = np.abs(found - expected)
        assert apart.max() <= 1.001  # pixels that lie at one half before they are rounded
        assert np.mean(apart > 0.5) < 0.02


@pytest.fixture(scope="module")
def any_size(resizing_onnx: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    path = tmp_path_factory.mktemp("any") / "any.onnx"
    progress = Notes()
    made = export(resizing_onnx, path, options=ExportOptions(fuse_resize="any"), progress=progress)
    assert not [line for line in progress.lines if line.startswith("graph:")], "what reads sizes is meant to be there"
    return made


@pytest.fixture(scope="module")
def resizing_onnx(tiny_onnx: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The tiny graph as somebody's whose images are resized."""
    folder = tmp_path_factory.mktemp("resizing")
    assert tiny_onnx.manifest.preprocess is not None
    spec = tiny_onnx.manifest.preprocess.model_copy(
        update={"resize": "shortest", "resize_size": 9, "crop": "center", "interpolation": "bicubic"}
    )
    (folder / "preprocess.json").write_text(spec.model_dump_json())
    foreign = onnx.load(tiny_onnx.path)
    del foreign.metadata_props[:]
    onnx.save(foreign, folder / "foreign.onnx")
    return export(
        folder / "foreign.onnx",
        folder / "adopted.onnx",
        options=ExportOptions(preprocess=str(folder / "preprocess.json")),
    )


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Images of three sizes, three of each in a row."""
    folder = tmp_path / "photographs"
    for number in range(9):
        name = f"{number % 2}/{number:02}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        height, width = [(20, 31), (31, 20), (17, 17)][number // 3]
        Image.fromarray(_images(1, height, width)[0]).convert("L").save(folder / name)
    return folder


def test_images_of_any_size_are_predicted_as_pillow_prepares_them(
    resizing_onnx: OnnxModel, any_size: OnnxModel, photographs: Path
) -> None:
    assert verify(any_size).passed
    assert len(any_size.manifest.checks) == 6
    with load(resizing_onnx) as plain, load(any_size) as whole:
        before, after = plain.outputs(photographs), whole.outputs(photographs)
        np.testing.assert_allclose(after, before, atol=5e-2 * np.ptp(before))
        names = [one.image for one in whole.stream(photographs, batch=2)]
        assert names == [one.image for one in plain.stream(photographs, batch=2)]
        assert len(names) == 9
    rows = batch_predictor(any_size)({"image": [str(path) for path in sorted(photographs.rglob("*.png"))]})
    assert list(rows["class"]) == list(after.argmax(axis=1))


def test_bench_times_and_compares_it(resizing_onnx: OnnxModel, any_size: OnnxModel, photographs: Path) -> None:
    (photographs.parent / "map.json").write_text('{"0": 0, "1": 1}')
    options = BenchOptions(rounds=1, iterations=2, image_to_label=True, label_map=photographs.parent / "map.json")
    report = bench([resizing_onnx, any_size], photographs, options=options)
    assert [row.status for row in report.rows] == ["ok", "ok"]
    assert report.rows[1].agreement is not None
    assert report.rows[1].agreement >= 8 / 9
    assert not any("its process failed" in note for row in report.rows for note in row.notes)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_graph_of_one_size_builds_in_tensorrt_rtx_at_every_precision(
    resizing_onnx: OnnxModel, precision: Precision, tmp_path: Path
) -> None:
    source = resizing_onnx
    if precision != "fp32":
        source = quantize(resizing_onnx, tmp_path / "q.onnx", precision=precision, calibration="digits:train")
    fused = export(source, tmp_path / "fused.onnx", options=ExportOptions(fuse_resize=(30, 40), fuse_preprocess="nchw"))
    assert fused.manifest.precision == source.manifest.precision
    assert fused.golden is not None
    assert fused.golden.pixels.shape[1:] == (30, 40, 1)
    target = BuildTarget(compute_capabilities=("8.9",))
    engine = get_backend("tensorrt-rtx").build(fused, tmp_path / "fused.engine", target)
    assert engine.manifest.preprocess == fused.manifest.preprocess
    write_triton_repository([fused], tmp_path / "triton")
    assert "dims: [1, 30, 40]" in (tmp_path / "triton" / "fused" / "config.pbtxt").read_text()
    with load(fused) as model, pytest.raises(DataError, match="20×20 pixels does not fit a graph that resizes"):
        model.predict(np.zeros((20, 20), np.uint8))


@pytest.mark.torch
def test_a_checkpoint_is_compared_with_pytorch_on_whole_images(tmp_path: Path) -> None:
    options = ExportOptions(
        random_weights=True,
        arguments={"image_size": 32, "patch": 16, "width": 32, "depth": 1, "heads": 2, "num_classes": 3},
        fuse_resize="any",
    )
    fused = export("vit", tmp_path / "fused.onnx", options=options)
    names = [check.name for check in fused.manifest.checks]
    assert names[0] == "logits against PyTorch, images of 96×65, batch 1"
    assert names[-1] == "logits against PyTorch, images of 65×96, batch 5"
    assert all(check.value is not None and check.value < 1e-3 for check in fused.manifest.checks)


def test_what_cannot_be_carried_out_is_refused_by_name(
    tiny_onnx: OnnxModel, resizing_onnx: OnnxModel, any_size: OnnxModel, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(GraphError, match="resizes nothing"):
        export(tiny_onnx, tmp_path / "x.onnx", options=ExportOptions(fuse_resize="any"))
    with pytest.raises(GraphError, match="without filling edges"):
        fuse_preprocess(_identity(), PLAIN.model_copy(update={"resize_size": 33}), "uint8-nhwc", (64, 64))
    with pytest.raises(GraphError, match="'lanczos', expected bilinear or bicubic"):
        fuse_preprocess(_identity(), PLAIN.model_copy(update={"interpolation": "lanczos"}), "uint8-nhwc", "any")
    cover = PLAIN.model_copy(update={"resize": "cover", "resize_size": (40, 44)})
    with pytest.raises(GraphError, match="for images of any size: name their size"):
        fuse_preprocess(_identity(), cover, "uint8-nhwc", "any")
    with pytest.raises(BuildError, match=r"fuse_resize=\(480, 640\)"):
        get_backend("tensorrt-rtx").build(any_size, tmp_path / "x.engine", BuildTarget(compute_capabilities=("8.9",)))
    with pytest.raises(GraphError, match="resizes its images itself: quantize the graph that it was made from"):
        quantize(any_size, tmp_path / "x.onnx", precision="fp16")
    with pytest.raises(UsageError, match="golden= has no place with fuse_resize="):
        export(resizing_onnx, tmp_path / "x.onnx", options=ExportOptions(fuse_resize="any", golden="digits:test"))
    for text in ("480", "480x", "0x5", "x", "480X640", "-1x4"):
        assert main(["export", str(resizing_onnx.path), "-o", str(tmp_path / "x.onnx"), f"--fuse-resize={text}"]) == 2
    assert "expected height and width, such as 480x640, or 'any'" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()
    arguments = ["export", str(resizing_onnx.path), "-o", str(tmp_path / "y.onnx"), "--fuse-resize", "30x40"]
    assert main(arguments) == 0
    assert main(["inspect", str(tmp_path / "y.onnx")]) == 0
    assert "all of it in the graph, which takes images of 30×40 as uint8 nhwc" in " ".join(
        capsys.readouterr().out.split()
    )


def _identity() -> ir.Model:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n,3,32,37] x) => (float[n,3,32,37] y) { y = Identity(x) }'
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def test_other_runtimes_agree(any_size: OnnxModel) -> None:
    images = to_input(_images(3, 40, 23)[..., :1], any_size.manifest.preprocess or PLAIN)
    found = [run_batch(get_backend(name).open(any_size), images) for name in ("onnxruntime", "openvino")]
    np.testing.assert_allclose(found[1], found[0], atol=2e-2 * np.ptp(found[0]))


def test_the_key_is_that_of_the_request(resizing_onnx: OnnxModel, tmp_path: Path) -> None:
    from vitdeploy.stages.export import ExportRequest

    keys = set()
    frames: tuple[Frame | None, ...] = (None, "any", (30, 40))
    for frame in frames:
        options = ExportOptions(fuse_preprocess="nhwc", fuse_resize=frame)
        request = ExportRequest.open(resizing_onnx, tmp_path / "x.onnx", options=options)
        assert request.run().manifest.key == request.key
        keys.add(request.key)
    assert len(keys) == 3
