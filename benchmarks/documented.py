"""Run every command and every Python block of README.md, docs/ and calibration/README.md as printed.

    python benchmarks/documented.py                        # every page: most of an hour on 2 cores
    python benchmarks/documented.py README.md training.md  # these pages
    python benchmarks/documented.py --list                 # what would run, and what would not and why

Each page gets a fresh folder with 240 photographs and the checkpoints that its commands name, and is worked through
from top to bottom: indented blocks and blocks of ``sh`` line by line, blocks of ``python`` each in a process of its own
that has the page's earlier imports. YAML blocks whose first line is a comment with a file name are that file. A block
that cannot run on a machine without a GPU, a Jetson or a network has a comment in front of it that says why:
``<!-- not run: REASON -->``.

Ends with 1 where something fails.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from photographs import CLASSES, make_photographs

ROOT = Path(__file__).resolve().parents[1]
CONTENTS = ROOT / "docs" / "index.md"
"""The site's table of contents, without blocks to run; tests/test_site.py is for it."""
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page != CONTENTS),
    ROOT / "calibration" / "README.md",
]
IMAGES = 240
TIMEOUT_S = 3600
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
LANGUAGES = ("sh", "python", "yaml", "json", "text")


@dataclass(frozen=True)
class Block:
    """A block of code of a page: its first line's number, its language, its text, and why it is not run, if so."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None = None

    @property
    def runs(self) -> bool:
        """Return whether the block is for running: a shell's or Python's, and not marked."""
        return self.language in ("sh", "python") and self.reason is None

    def commands(self) -> Iterator[tuple[int, str]]:
        """Yield line number and text of each command of a shell's block; a backslash at its end joins two lines."""
        pending, start = "", self.line
        for number, line in enumerate(self.text.splitlines(), self.line):
            start = number if not pending else start
            pending += line.strip()
            if pending.endswith("\\"):
                pending = pending[:-1]
            elif pending:
                yield start, pending
                pending = ""


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of code of a page, indented ones as ``sh``.

    Raises:
        ValueError: A fence names no language, or a marker stands before no block that would run.
    """
    name = page.relative_to(ROOT).as_posix()
    blocks: list[Block] = []
    reason: tuple[int, str] | None = None
    lines = [*page.read_text("utf8").splitlines(), ""]
    number = 0
    while number < len(lines):
        start, line = number, lines[number]
        number += 1
        if line.startswith("```"):
            language, end = line[3:].strip(), lines.index("```", number)
            block = Block(name, start + 2, language, "\n".join(lines[number:end]), reason and reason[1])
            number = end + 1
        elif line.startswith("    ") and not lines[start - 1].strip():
            while lines[number].startswith("    "):
                number += 1
            block = Block(name, start + 1, "sh", "\n".join(lines[start:number]), reason and reason[1])
        else:
            found = NOT_RUN.fullmatch(line)
            if reason is not None and line.strip():
                raise ValueError(f"{name}:{reason[0]}: the marker stands before no block")
            reason = (start + 1, found[1]) if found else reason
            continue
        if block.language not in LANGUAGES:
            raise ValueError(f"{name}:{start + 1}: the block names no language of {', '.join(LANGUAGES)}")
        if reason is not None and block.language not in ("sh", "python"):
            raise ValueError(f"{name}:{reason[0]}: the marker stands before a block that would not run anyway")
        blocks.append(block)
        reason = None
    return blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="names of pages (default: all)")
    parser.add_argument("--list", action="store_true", help="show the blocks and run nothing")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, in a folder per page, and keep it")
    arguments = parser.parse_args()
    known = {page.relative_to(ROOT).as_posix(): page for page in PAGES}
    chosen = {
        name: page for name, page in known.items() if not arguments.pages or {name, page.name} & {*arguments.pages}
    }
    if not chosen or len(chosen) < len(set(arguments.pages)):
        parser.error(f"expected some of {', '.join(known)}")
    if arguments.list:
        for page in chosen.values():
            for block in blocks_of(page):
                how = "runs" if block.runs else f"not run: {block.reason}" if block.reason else "data"
                print(f"{block.page}:{block.line:<5} {block.language:6} {how}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.keep or Path(temporary)
        given = Given(place / "given")
        failed = sum(work_through(page, place / name.replace("/", "-"), given) for name, page in chosen.items())
    print(f"{failed} failed" if failed else "all went well")
    sys.exit(1 if failed else 0)


def work_through(page: Path, folder: Path, given: Given) -> int:
    """Run the blocks of a page in a fresh folder, print a line for each command, and return how many failed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    blocks = blocks_of(page)
    name = page.relative_to(ROOT).as_posix()
    given.put("\n".join(block.text for block in blocks if block.runs), folder, name)
    for block in blocks:
        file = re.match(r"# ([\w-]+\.yaml)\n", block.text)
        if block.language == "yaml" and file is not None:
            (folder / file[1]).write_text(block.text, "utf8")
    failures, imports = 0, ""
    for block in blocks:
        if block.reason is not None:
            print(f"{name}:{block.line:<5}      –  not run: {block.reason}", flush=True)
        elif block.language == "sh":
            for line, command in block.commands():
                failures += not carry_out(["bash", "-c", command], folder, f"{name}:{line}", command)
        elif block.language == "python":
            script = f"{imports}\n{block.text}\n"
            first = block.text.splitlines()[0]
            failures += not carry_out([sys.executable, "-c", script], folder, f"{name}:{block.line}", f"{first} …")
            tree = ast.parse(block.text).body
            imports += "".join(
                f"{ast.unparse(node)}\n" for node in tree if isinstance(node, ast.Import | ast.ImportFrom)
            )
    return failures


def carry_out(command: Sequence[str], folder: Path, where: str, shown: str) -> bool:
    """Run a command, print a line about it, and return whether it went well."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
        code, output = str(done.returncode), done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        code, output = "none", f"it took more than {TIMEOUT_S} s"
    seconds = time.monotonic() - start
    print(f"{where:26} {seconds:6.1f} s  {'ok' if code == '0' else f'exit {code}':8} {shown}", flush=True)
    if code != "0":
        print("\n".join(f"    {line}" for line in output.strip().splitlines()[-12:]), flush=True)
    return code == "0"


class Given:
    """What the pages take for granted, each made when a page first names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, text: str, folder: Path, page: str) -> None:
        """Put into a folder what the text of a page's blocks names and does not make itself."""
        for name, make in MAKERS.items():
            if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", text) and not self._made(name, text):
                source = self.folder / (f"digits-{name}" if page in OF_DIGITS else name)
                if not source.exists():
                    make(source)
                link = folder / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source, target_is_directory=source.is_dir())
        (folder / "calibration").symlink_to(ROOT / "calibration", target_is_directory=True)

    @staticmethod
    def _made(name: str, text: str) -> bool:
        """Return whether the first command that names a file writes it."""
        first = next(line for line in text.splitlines() if name in line)
        return re.search(rf"-o {re.escape(name)}(?![\w.-])|vd\.\w+\(\"\w+\", \"{re.escape(name)}\"", first) is not None


def _photographs(path: Path) -> None:
    make_photographs(path, IMAGES)


def _photograph(path: Path) -> None:
    make_photographs(path.with_suffix(".all"), CLASSES)
    shutil.copyfile(next(file for file in sorted(path.with_suffix(".all").rglob("*.jpg"))), path)


def _a_three(path: Path) -> None:
    import vitdeploy as vd

    vd.open_dataset("digits:test").image(3).save(path)


def _checkpoint(path: Path) -> None:
    """Train for two epochs: on the digits, or on the photographs at 224 pixels."""
    import vitdeploy as vd

    options = vd.TrainOptions(epochs=2)
    if path.name.startswith("digits-"):
        vd.train("digits", path, options=options)
        return
    photos = path.parent / "photos"
    if not photos.exists():
        _photographs(photos)
    small = {"image_size": 224, "patch": 16, "width": 64, "depth": 2, "heads": 2}
    vd.train(photos, path, arguments=small, options=options)


def _graph(path: Path) -> None:
    import vitdeploy as vd

    checkpoint = path.with_name(f"{path.stem}.safetensors")
    if not checkpoint.exists():
        _checkpoint(checkpoint)
    vd.export(checkpoint, path)


def _timm(name: str, classes: int = 1000) -> Callable[[Path], None]:
    """Return what writes the weights of a model of timm, as ``torch.save`` or safetensors does."""

    def write(path: Path) -> None:
        import timm
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        state = timm.create_model(name, num_classes=classes).state_dict()
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save({"model": state}, path)

    return write


def _swin(path: Path) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.swin_t().state_dict(), path)


def _hugging_face(path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, num_labels=4)
    ViTForImageClassification(config).save_pretrained(path)
    ViTImageProcessor().save_pretrained(path)


def _owner(path: Path) -> None:
    private = path.with_suffix(".key")
    if not private.exists():
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    if path != private:
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", path], check=True)


def _names(path: Path) -> None:
    photos = path.parent / "photos"
    if not photos.exists():
        _photographs(photos)
    path.write_text("".join(f"{folder.name}\n" for folder in sorted(photos.iterdir())), "utf8")


MAKERS: dict[str, Callable[[Path], None]] = {
    "photos": _photographs,
    "images": _photographs,
    "checked": _photographs,
    "photo.jpg": _photograph,
    "three.png": _a_three,
    "classes.txt": _names,
    "vit.safetensors": _checkpoint,
    "vit.onnx": _graph,
    "vit_tiny.safetensors": _timm("vit_tiny_patch16_224"),
    "deit_small.pth": _timm("deit_small_patch16_224", CLASSES),
    "deit_small_patch16_224-cd65a155.pth": _timm("deit_small_patch16_224"),
    "swin_t-704ceda3.pth": _swin,
    "my-vit": _hugging_face,
    "owner.key": _owner,
    "owner.pub": _owner,
}
"""What a page may name, and what writes it. Photographs have class folders; weights are untrained."""

OF_DIGITS = ("docs/python.md",)
"""Pages whose checkpoint is one of digits."""


if __name__ == "__main__":
    main()
