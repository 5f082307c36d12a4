"""The documentation is true: its commands exist, its links lead somewhere, its example runs, its table was measured."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from PIL import Image

from vitdeploy.cli import main
from vitdeploy.cli.app import EXAMPLES, app
from vitdeploy.pipeline import Recipe
from vitdeploy.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize, open_image, preprocess_from, to_pixels
from vitdeploy.reading import parse_yaml
from vitdeploy.records import Preprocess
from vitdeploy.records.report import Row
from vitdeploy.report import read_report

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf8")


def benchmark(name: str) -> Any:
    """Import a script of ``benchmarks``."""
    place = str(ROOT / "benchmarks")
    sys.path.insert(0, place)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(place)


documented = benchmark("documented")
PAGES = documented.PAGES
BLOCKS = [block for page in documented.PAGES for block in documented.blocks_of(page)]


def lines_of_code(text: str) -> Iterator[str]:
    """Yield the lines of code blocks, indented or fenced (but not of Python or YAML), and what stands in backticks."""
    fenced: str | None = None
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = None if fenced is not None else line.removeprefix("```")
        elif line.startswith("    ") or fenced in ("", "sh"):
            yield line.strip()
        elif fenced is None:
            yield from re.findall(r"`([^`]+)`", line)


def commands(program: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for line in lines_of_code(page.read_text("utf8")):
            line = re.sub(r"^(?:\.venv|venv)/bin/", "", line)
            if line.startswith(f"{program} ") and "…" not in line and "…" not in line:
                found.append((page.name, line))
    return sorted(set(found))


def without_effects(command: Any) -> Any:
    """Return a click command whose subcommands parse and check their options and do nothing."""
    for inner in getattr(command, "commands", {}).values():
        without_effects(inner)
    if not hasattr(command, "commands"):
        command.callback = lambda **values: None
    return command


def is_a_form(line: str) -> bool:
    """Tell ``vitdeploy quantize`` and ``vitdeploy bench ARTIFACT`` from a command that can be typed."""
    words = line.split()[1:]
    return len(words) == 1 or any(re.fullmatch(r"[\[(]?[A-Z]{3,}[^ ]*", word) for word in words)


COMMANDS = [(page, line) for page, line in commands("vitdeploy") if not is_a_form(line)]


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 25
    assert {"train", "export", "quantize", "build", "bench", "run"} <= {line.split()[1] for _, line in COMMANDS}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_of_the_pages_has_the_options_that_it_uses(page: str, line: str) -> None:
    command = without_effects(typer.main.get_command(app))
    words = shlex.split(line, comments=True)[1:]
    assert command.main(words, prog_name="vitdeploy", standalone_mode=False) in (None, 0)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_help_of_a_command_ends_with_an_example_that_parses(name: str) -> None:
    command: Any = typer.main.get_command(app)
    context = command.make_context("vitdeploy", [], resilient_parsing=True)
    inner = command.commands[name]
    text = inner.get_help(inner.make_context(name, [], parent=context, resilient_parsing=True))
    assert "".join(text.split()).endswith("".join(f"Example: {EXAMPLES[name]}".split()))  # wherever lines are broken
    assert without_effects(command).main(shlex.split(EXAMPLES[name])[1:], standalone_mode=False) in (None, 0)


def test_what_is_only_named_exists() -> None:
    command = typer.main.get_command(app)
    help_text = command.get_help(command.make_context("vitdeploy", [], resilient_parsing=True))
    for _, line in commands("vitdeploy"):
        assert re.search(rf"^ +{line.split()[1]}\b", help_text, re.MULTILINE), line


def test_the_check_of_commands_notices_a_wrong_one() -> None:
    command = without_effects(typer.main.get_command(app))
    for words in (["train", "x", "-o", "y", "--epoch", "3"], ["quantise", "x"], ["build", "x", "-o", "y", "-z"]):
        with pytest.raises(Exception, match="No such"):
            command.main(words, prog_name="vitdeploy", standalone_mode=False)


WRITTEN = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]


def anchors(page: Path) -> set[str]:
    """Return what a link may name behind ``#``, as GitHub and the site form it of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"(?ms)^```.*?^```$", "", page.read_text("utf8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text("utf8")):
        if "://" not in target:
            led = page.parent / target if target else page
            assert led.exists(), target
            assert not anchor or anchor in anchors(led), f"{target}#{anchor}"


def faulty_addresses(text: str) -> list[str]:
    """Return the addresses of a text that are not https, have no full host, or stand there with a space or a user."""
    places = r"(?<=\]\()(?:[a-z]+:|www\.|//)[^)\s]*|(?<![\w`'\"(/])(?:https?:|www\.)[^)>\s`'\"]*"
    found = re.findall(places, re.sub(r"(?ms)^```.*?^```$", "", text))
    return [one for one in found if not re.fullmatch(r"https://(?:[a-z0-9-]+\.)+[a-z]{2,}(?:/[\w./~%?&=#+-]*)?", one)]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_addresses_of_the_web_are_whole_and_https(page: Path) -> None:
    assert faulty_addresses(page.read_text("utf8")) == []


def test_the_check_of_addresses_notices_wrong_ones() -> None:
    wrong = [
        "http://example.org/a",
        "https://localhost/a",
        "www.example.org",
        "https://me@example.org",
        "//example.org",
    ]
    text = " ".join(f"[a]({one})" for one in [*wrong, "https://example.org/a_b/1.0.html#x"])
    assert faulty_addresses(text) == wrong


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for _, line in commands("make"):
        for target in shlex.split(line, comments=True)[1:]:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), line


def test_extras_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.compile(r"(?:vitdeploy|[`'\s]\.|\.whl)\[([a-z0-9,-]+)\]")
    names = {name for page in PAGES for found in extras.findall(page.read_text("utf8")) for name in found.split(",")}
    assert {"torch", "tensorrt-rtx", "all", "tensorrt-cu12", "cuda13"} <= names
    for name in names:
        assert re.search(rf"^{name} = \[", project, re.MULTILINE), name


def test_recipes_of_the_pages_are_valid() -> None:
    blocks = [block for page in PAGES for block in re.findall(r"```yaml\n(.*?)```", page.read_text("utf8"), re.DOTALL)]
    assert blocks
    for block in blocks:
        Recipe.model_validate(parse_yaml(block))


def test_the_blocks_that_benchmarks_documented_runs_are_all_but_the_marked_ones() -> None:
    code = [block for block in BLOCKS if block.language in {"sh", "python"}]
    assert {block.page for block in code if block.runs} >= {"README.md", "docs/training.md", "docs/running.md"}
    assert sum(block.runs for block in code) >= 15
    assert all(block.runs or block.reason for block in code)
    fences = sum(page.read_text("utf8").count("\n```") for page in documented.PAGES)
    indented = sum(block.language == "sh" for block in BLOCKS)
    assert len(BLOCKS) == fences // 2 + indented, "shell is indented, all else is fenced"


def test_a_marked_block_does_what_only_the_marker_can_say() -> None:
    """What needs no GPU, network or installation is run: a marker must not hide a command that fails."""
    words = {"installs", "a Jetson", "an NVIDIA GPU", "timm's hub", "Google's file is not here"}
    for block in BLOCKS:
        assert block.reason is None or any(block.reason.startswith(word) for word in words), block


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.runs and block.language == "sh"],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_a_block_that_runs_has_commands_alone(block: Any) -> None:
    for line, command in block.commands():
        assert shlex.split(command, comments=True)[0] == "vitdeploy", (
            f"{block.page}:{line} is not a command: output is fenced as text"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```\nx\n```\n", r"page.md:1: the block names no language"),
        ("<!-- not run: a GPU -->\n\nwords\n", r"page.md:1: the marker stands before no block"),
        (
            "<!-- not run: a GPU -->\n\n```yaml\na: 1\n```\n",
            r"page.md:1: the marker stands before a block that would not",
        ),
    ],
)
def test_a_page_that_leaves_open_what_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match=message):
        documented.blocks_of(tmp_path / "page.md")


def test_blocks_are_collected_with_lines_and_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    text = "# A\n\n    one \\\n    two\n    three\n\nwords\n\n"
    text += "<!-- not run: a GPU -->\n\n```python\nx = 1\n```\n\n```sh\ny\n```\n"
    (tmp_path / "page.md").write_text(text)
    first, second, third = documented.blocks_of(tmp_path / "page.md")
    assert list(first.commands()) == [(3, "one two"), (5, "three")]
    assert (second.line, second.language, second.reason, second.runs) == (12, "python", "a GPU", False)
    assert (list(third.commands()), third.runs) == ([(16, "y")], True)


def test_a_command_that_fails_is_counted_and_one_that_works_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    scripts = ("import os", "print(os.sep)", "raise SystemExit(3)")
    text = "    echo fine\n    false # wrong\n" + "".join(f"\n```python\n{script}\n```\n" for script in scripts)
    (tmp_path / "page.md").write_text(text)
    given = documented.Given(tmp_path / "given")
    assert documented.work_through(tmp_path / "page.md", tmp_path / "page", given) == 2
    printed = capsys.readouterr().out
    outcomes = [("1", "ok"), ("2", "exit 1"), ("5", "ok"), ("9", "ok"), ("13", "exit 3")]
    assert re.findall(r"page.md:(\d+) +[\d.]+ s  (ok|exit \d)", printed) == outcomes


def test_the_five_lines_of_the_readme_take_foreign_weights_that_name_no_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed, but with a model of 32 pixels and one block, a fixed batch, and little to time."""
    import timm
    import torch

    (block,) = [one for one in BLOCKS if one.page == "README.md" and "--labels classes.txt" in one.text]
    commands = [command for _, command in block.commands()]
    assert [command.split()[1] for command in commands] == ["export", "quantize", "build", "bench", "predict"]
    monkeypatch.chdir(tmp_path)
    benchmark("photographs").make_photographs(Path("photos"), 48)
    names = sorted(folder.name for folder in Path("photos").iterdir())
    Path("classes.txt").write_text("".join(f"{name}\n" for name in names))
    shutil.copy(next(Path("photos", names[0]).glob("*.jpg")), "photo.jpg")
    model = timm.create_model("deit_small_patch16_224", img_size=32, depth=1, num_classes=len(names))
    torch.save(model.state_dict(), "deit_small.pth")
    small = ["--model-arg", "image_size=32", "--model-arg", "depth=1"]
    quick = {"export": small, "bench": ["--rounds", "1", "--iterations", "1", "--no-processes"]}
    for command in commands:
        words = shlex.split(command)[1:]
        capsys.readouterr()
        assert main([*words, *quick.get(words[0], [])]) == 0, command
    assert any(name in capsys.readouterr().out for name in names)
    report = read_report("report")
    assert {row.precision for row in report.rows} == {"fp32", "int8"}
    assert report.baseline.accuracy_against.startswith("PyTorch")
    assert [one.name for one in report.conditions.classes] == names


def test_the_example_for_notebooks_has_seven_lines_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) == 7
    source = "\n".join(lines)
    for slow, quick in {
        "epochs=140": "epochs=1",
        "rounds=10": "rounds=1, iterations=2, samples=40, processes=False",
        'calibration="digits:train"': 'calibration="digits:train", options=vd.QuantizeOptions(samples=64)',
    }.items():
        assert slow in source
        source = source.replace(slow, quick)
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "README.md", "exec"), {})
    assert "ship" in capsys.readouterr().out.lower()
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize("size", [(500, 375), (300, 411), (256, 256), (1001, 333)])
def test_the_ten_lines_for_plain_onnx_runtime_give_the_pixels_of_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    page = (ROOT / "docs" / "deploying.md").read_text("utf8")
    (block,) = (text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in text)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n,3,224,224] input) => (float[n,3,224,224] logits) '
    onnx.save(onnx.parser.parse_model(text + "{ logits = Identity(input) }"), tmp_path / "vit.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block, "deploying.md", "exec"), names)
    spec = Preprocess(size=(224, 224), resize_size=256, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    expected = normalize(to_pixels(open_image(tmp_path / "photo.jpg"), spec)[None], spec)
    np.testing.assert_array_equal(names["logits"], expected)


@pytest.mark.torch
@pytest.mark.parametrize("size", [(500, 375), (301, 411), (256, 256)])
def test_the_record_of_the_docs_prepares_images_as_torchvision_does(tmp_path: Path, size: tuple[int, int]) -> None:
    import torch
    from torchvision import transforms

    page = (ROOT / "docs" / "data.md").read_text("utf8")
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "own.json").write_text(block)
    spec = preprocess_from(str(tmp_path / "own.json"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    steps = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    expected: torch.Tensor = steps(image)
    np.testing.assert_allclose(normalize(to_pixels(image, spec)[None], spec)[0], expected.numpy(), atol=1e-5)


def test_the_table_of_the_readme_is_that_of_the_report_beside_it() -> None:
    module = benchmark("readme")
    report = read_report(ROOT / "docs" / "demo")
    shown = README.split(module.BEGIN)[1].split(module.END)[0]
    assert shown.strip() == module.printed(report).strip()


def _at_batch_64(row: Row) -> float:
    """Return the median latency, ms."""
    (timing,) = (one for one in row.timings if one.batch == 64)
    return timing.p50_ms


def test_the_report_in_the_readme_is_what_the_demo_promises() -> None:
    rows = {(row.backend, row.precision): row for row in read_report(ROOT / "docs" / "demo").rows}
    assert len(rows) == 7
    baseline, int8 = rows["pytorch", "fp32"], rows["openvino", "int8"]
    assert _at_batch_64(int8) < _at_batch_64(rows["openvino", "fp32"])
    assert baseline.top1 is not None
    assert baseline.top1 >= 0.97
    assert int8.delta_top1_pp is not None
    assert abs(int8.delta_top1_pp) <= 0.5
    assert int8.logits_sqnr_db is not None
    assert int8.logits_sqnr_db >= 30
    for precision in ("fp16", "int8"):
        engine = rows["tensorrt-rtx", precision]
        assert engine.status in {"ok", "built"}
        assert engine.precision_by_layer is not None or engine.reason
