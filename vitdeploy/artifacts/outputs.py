"""Whether a file could be written under a name: asked before the work, so that a wrong name costs no minutes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vitdeploy.artifacts.base import Artifact
from vitdeploy.artifacts.locks import is_held_here, refuse_held
from vitdeploy.artifacts.ownership import is_our_folder, is_ours
from vitdeploy.artifacts.run_record import RUN
from vitdeploy.errors import ArtifactError
from vitdeploy.reading.regular import kind_of_mode, require_text

TEXT = "a text file"
KIND_OF_SUFFIX = {
    ".safetensors": "a checkpoint",
    ".onnx": "an ONNX file",
    ".engine": "an engine file",
    ".plan": "an engine file",
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".pkl"), "a PyTorch file"),
    **dict.fromkeys((".npz", ".npy"), "a NumPy file"),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"), "an image"),
    **dict.fromkeys((".json", ".yaml", ".yml", ".txt", ".md", ".html", ".csv"), TEXT),
}
_ENDING_OF_KIND = {"a checkpoint": ".safetensors", "an ONNX file": ".onnx", "an engine file": ".engine"}


def refuse_unwritable(path: Path, what: str, *, inputs: Iterable[object] = (), beside: Iterable[Path] = ()) -> None:
    """Raise where ``what`` (``an engine file``) could not be written, or should not be.

    Args:
        path: The name; a new one, or that of a file that vitdeploy wrote. One that belongs to another kind of file is
            refused, because most often it is the input, named by mistake.
        what: A value of ``KIND_OF_SUFFIX``, or other words for it.
        inputs: What is read and may not be replaced, under whatever name: artifacts and paths; others do not count.
        beside: Files that are written with it; what holds for ``path`` holds for them, but their names are free.
    Raises:
        ArtifactError: ``path`` is a folder, a device or an input, lies where nothing can be written, is called like
            another kind of file, holds what vitdeploy did not write, or is held by another run.
    """
    require_text(path)
    suffix = path.suffix.lower()
    belongs = KIND_OF_SUFFIX.get(suffix, what)
    if belongs != what and (belongs != TEXT or what in _ENDING_OF_KIND):
        ending = _ENDING_OF_KIND.get(what)
        hint = f", such as {str(path.with_suffix(ending))!r}" if ending is not None else ""
        raise ArtifactError(
            f"{str(path)!r} is the name of {belongs}, and this writes {what}: choose another name{hint}"
        )
    for file in (path, *beside):
        refuse_special(file, f"the name of {what}" if file is path else "a file")
    for one in inputs:
        source = one.path if isinstance(one, Artifact) else one
        for file in (path, *beside):
            if isinstance(source, str | Path) and _is_same(file, Path(source)):
                raise ArtifactError(f"{str(file)!r} is the input {str(source)!r} itself: choose another name")
    _refuse_unwritable(path, path.absolute().parents)
    refuse_held(path)
    for file in (path, *beside):
        refuse_strange(file)


def refuse_strange(path: Path) -> None:
    """Raise where a file is there that vitdeploy did not write: somebody's photograph, notes or weights.

    One of ours that is so damaged that it cannot be told from others counts as theirs. The folder of a run is the run's
    own, damaged files too: they are made anew. One that this process holds was looked at when it was taken.

    Raises:
        ArtifactError: There is such a file.
    """
    if not path.is_file() or is_held_here(path.parent):
        return
    if not is_ours(path) and not _is_of_run(path.parent):
        raise ArtifactError(
            f"{str(path)!r} exists and was not written by vitdeploy, or is damaged: choose another name, or remove it"
        )


def _is_of_run(folder: Path) -> bool:
    return (folder / RUN).is_file() and is_ours(folder / RUN)


def refuse_unwritable_folder(path: Path, names: Iterable[str] = (), *, ours: bool = False) -> None:
    """Raise where no files called ``names`` could be written into the folder ``path``, which need not be there yet.

    Args:
        path: The folder.
        names: What is written into it.
        ours: It is known to hold what vitdeploy wrote, whatever state that is in.
    Raises:
        ArtifactError: ``path`` is a file, or lies where nothing can be written, or a name is taken by what is no file,
            or by one that vitdeploy did not write.
    """
    require_text(path)
    try:
        is_taken = path.exists() and not path.is_dir()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{str(path)!r} is not a name that a folder can have") from error
    if is_taken:
        raise ArtifactError(f"{str(path)!r} is a file, expected a folder")
    names = tuple(names)
    for name in names:
        refuse_special(path / name, "a file")
    marked = [name for name in names if not name.endswith(".npz")]  # arrays carry no mark, their name is ours alone
    if marked and not (ours or is_held_here(path) or is_our_folder(path)):
        for name in marked:
            refuse_strange(path / name)
    _refuse_unwritable(path, [path, *path.absolute().parents])


def refuse_special(path: Path, expected: str) -> None:
    """Raise where a name is taken by a folder, a device, a named pipe or a socket; links count for what they lead to.

    Raises:
        ArtifactError: It is special, or no file can have this name.
    """
    try:
        kind = kind_of_mode(path.stat().st_mode)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ArtifactError(f"{str(path)!r} is not a name that a file can have") from error
    except OSError as error:
        raise ArtifactError(f"cannot write {str(path)!r}: {error.strerror}") from error
    if kind is not None:
        raise ArtifactError(f"{str(path)!r} is {kind}, expected {expected}: nothing was written")


def _is_same(path: Path, source: Path) -> bool:
    """Return whether two names are one file: by path, by a link, or by a second hard link."""
    try:
        return path.absolute() == source.absolute() or path.samefile(source)
    except (OSError, ValueError):
        return False


def _refuse_unwritable(path: Path, folders: Iterable[Path]) -> None:
    """Refuse an output whose nearest folder that exists, of these, cannot be written."""
    folder = next((parent for parent in folders if parent.exists()), Path("/"))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {str(path)!r}: {str(folder)!r} is not a folder that can be written")


@contextmanager
def folder_or_nothing(folder: Path | None) -> Iterator[None]:
    """Remove a folder that a block makes where the block fails; one that was there before stays."""
    new = folder is not None and not folder.exists()
    try:
        yield
    except BaseException:
        if new and folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
