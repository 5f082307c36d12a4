"""What an error advises works: the advice is read out of the message, its placeholders are filled, and it is run."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from torch import nn

from vitdeploy.cli import main

pytestmark = pytest.mark.slow

SIZE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
NAME = "vit_tiny_patch16_224"


def save(path: Path, head: nn.Module | None = None, beside: dict[str, Any] | None = None, **changes: Any) -> None:
    torch.manual_seed(0)
    module: Any = timm.create_model(NAME, **{"num_classes": 5, **SIZE, **changes})
    if head is not None:
        module.head = head
    torch.save({"state_dict": module.state_dict(), **(beside or {})}, path)


def save_graph(path: Path, more: bool = False) -> None:
    head = "<ir_version: 8, opset_import: ['': 17]>".replace("'", '"')
    outputs = "float[N, 4] scores" + (", float[N, 4] twice" if more else "")
    body = "flat = Flatten(image) scores = MatMul(flat, weight)" + (" twice = Add(scores, scores)" if more else "")
    model = onnx.parser.parse_model(f"{head} g (float[N, 1, 8, 8] image) => ({outputs}) {{ {body} }}")
    weight = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).numpy()
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    onnx.save(model, path)


def convert(path: Path, output: Path) -> None:
    save(path)
    assert main(["convert", "vit", "--weights", str(path), "--model-arg", "heads=3", "-o", str(output)]) == 0


def quoted(message: str) -> list[str]:
    """Return the command that stands in quotes."""
    found = re.search(r"'vitdeploy ([^']+)'", message)
    assert found, message
    return shlex.split(found[1])


def flags(message: str, pattern: str) -> list[str]:
    found = re.search(pattern, message)
    assert found, message
    return shlex.split(found[1])


def timm_source(message: str) -> list[str]:
    """Return an export of the source that the message names, with the weights of a file and the arguments it names."""
    source = re.search(r"'(timm:[^']+)' with --weights FILE", message)
    assert source, message
    arguments = re.findall(r"--model-arg \S+", message)
    given = [source[1].replace("NAME", NAME), "--weights", "w.pth", *shlex.split(" ".join(arguments))]
    size = shlex.split(" ".join(f"--model-arg {key}={value}" for key, value in SIZE.items()))
    return ["export", *given, *size, "-o", "out.onnx"]


def with_configuration(path: Path) -> Path:
    """Return a path beside which a configuration of transformers says how images are prepared."""
    text = '{"size": {"height": 8, "width": 8}, "image_mean": [0.5], "image_std": [0.5], "resample": 2}'
    path.with_name("preprocessor_config.json").write_text(text)
    return path


def more(*options: str) -> list[str]:
    return ["export", "vit", "--weights", "w.pth", *options, "-o", "out.onnx"]


HEADS = ("--model-arg", "heads=3")
REGISTERS = ("--model-arg", "reg_tokens=4")
TWO = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5))
MAXIMUM = {"arch": NAME, "args": argparse.Namespace(model=NAME, gp="max", model_kwargs={})}

Case = tuple[Callable[[Path], None], list[str], Callable[[str], list[str]]]
CASES: dict[str, Case] = {
    "heads that no key tells": (save, more(), lambda text: more(*flags(text, r"pass (--model-arg \S+)"))),
    "no head: features": (
        lambda path: save(path, num_classes=0),
        more(*HEADS),
        lambda text: more(*HEADS, *flags(text, r"(--task features) takes")),
    ),
    "no head: a new one": (
        lambda path: save(path, num_classes=0),
        more(*HEADS),
        lambda text: more(
            *HEADS, *flags(text.replace("with ", "").replace("=N", "=4"), r"(--reset-head \S+ \S+) draws")
        ),
    ),
    "two linears: features": (
        lambda path: save(path, head=TWO),
        more(*HEADS),
        lambda text: more(*HEADS, *flags(text, r"(--task features) leaves it out")),
    ),
    "two linears: a new head": (
        lambda path: save(path, head=TWO),
        more(*HEADS),
        lambda text: more(
            *HEADS, *flags(text.replace("with ", "").replace("=N", "=4"), r"(--reset-head \S+ \S+) draws")
        ),
    ),
    "another number of classes": (
        save,
        more(*HEADS, "--model-arg", "num_classes=9"),
        lambda text: more(*HEADS, "--model-arg", "num_classes=9", *flags(text, r"(--reset-head) draws")),
    ),
    "registers": (lambda path: save(path, reg_tokens=4), more(), lambda text: [*timm_source(text), *REGISTERS]),
    "a maximum": (
        lambda path: save(path, beside=MAXIMUM, global_pool="max"),
        ["export", "w.pth", "-o", "out.onnx"],
        timm_source,
    ),
    "no weights": (
        save,
        ["export", NAME, "-o", "out.onnx", "--model-arg", "depth=1"],
        lambda text: [
            "export",
            NAME,
            "-o",
            "out.onnx",
            "--model-arg",
            "depth=1",
            *flags(text, r"or (--random-weights)"),
        ],
    ),
    "weights in place of a graph": (
        lambda path: convert(path, path.with_name("own.safetensors")),
        ["quantize", "own.safetensors", "--precision", "fp16", "-o", "q.onnx"],
        quoted,
    ),
    "a graph without preprocessing": (
        lambda path: save_graph(path.with_name("theirs.onnx")),
        ["export", "theirs.onnx", "-o", "out.onnx"],
        lambda text: ["export", "theirs.onnx", "-o", "out.onnx", *chosen(flags(text, r"pass (--preprocess \S+)"))],
    ),
    "a graph without a manifest": (
        lambda path: save_graph(path.with_name("theirs.onnx")),
        ["quantize", "theirs.onnx", "--precision", "fp16", "-o", "q.onnx"],
        lambda text: chosen(quoted(text)),
    ),
    "a graph beside whose configuration it lies": (
        lambda path: save_graph(with_configuration(path.with_name("theirs.onnx"))),
        ["quantize", "theirs.onnx", "--precision", "fp16", "-o", "q.onnx"],
        quoted,
    ),
    "weights beside a configuration of a graph": (  # of which the advice does not speak
        lambda path: save(with_configuration(path), reg_tokens=4),
        more(),
        lambda text: [*timm_source(text), *REGISTERS],
    ),
    "two outputs": (
        lambda path: save_graph(path.with_name("theirs.onnx"), more=True),
        ["export", "theirs.onnx", "-o", "out.onnx", "--preprocess", "digits"],
        lambda text: [
            *("export", "theirs.onnx", "-o", "out.onnx", "--preprocess", "digits"),
            *flags(text.replace("NAME", "scores"), r"with (--output-name \S+)"),
        ],
    ),
    "a name of PyTorch's": (
        save,
        ["export", "vit", "--weights", "w.pth", *HEADS, "-o", "x.pth"],
        lambda text: ["export", "vit", "--weights", "w.pth", *HEADS, "-o", *flags(text, r"such as ('\S+')")],
    ),
}


def chosen(command: list[str]) -> list[str]:
    """Take the last of the sources that ``--preprocess`` offers, a file."""
    return [re.sub(r"^timm:NAME\|hf:DIR\|FILE$", "digits.json", word) for word in command]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_what_an_error_advises_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    prepare, command, advised = CASES[case]
    monkeypatch.chdir(tmp_path)
    Path("digits.json").write_text('{"size": [8, 8], "channels": 1, "mean": [0.5], "std": [0.5]}')
    prepare(tmp_path / "w.pth")
    capsys.readouterr()
    assert main(command) in (1, 2)
    message = capsys.readouterr().err
    follow = advised(message)
    assert main(follow) == 0, (message, follow, capsys.readouterr().err)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "command", [["verify"], ["predict", "photo.png"], ["quantize", "--precision", "fp16", "-o", "q.onnx"]]
)
def test_weights_of_torch_are_called_weights_and_not_a_damaged_graph(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    legacy: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(3)}, "w.pth", _use_new_zipfile_serialization=not legacy)
    assert main([command[0], "w.pth", *command[1:]]) == 1
    assert "'w.pth' is a file of weights that others made, expected " in capsys.readouterr().err
