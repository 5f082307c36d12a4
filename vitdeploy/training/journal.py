"""Metrics of each epoch as JSON lines beside the checkpoint, and for TensorBoard where asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from vitdeploy.artifacts import write_atomically
from vitdeploy.training.paths import metrics_path, tensorboard_path

Row = dict[str, float]


class Journal:
    """Writes one row per epoch; starts from the rows of the epochs before, so that a resumed training leaves no gap."""

    def __init__(self, output: Path, history: list[Row], *, tensorboard: bool = False) -> None:
        """Take the rows so far; the first row after them starts the file anew, so that a false start leaves none."""
        self._path = metrics_path(output)
        self._before: list[Row] | None = list(history)
        self._board: Any = _open_board(tensorboard_path(output), len(history) + 1) if tensorboard else None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def add(self, row: Row) -> None:
        """Append a row."""
        if self._before is not None:
            write_atomically(self._path, "".join(map(_line, [*self._before, row])))
            self._before = None
        else:
            with self._path.open("a", encoding="utf8") as stream:
                stream.write(_line(row))
        if self._board is not None:
            for name, value in row.items():
                if name != "epoch":
                    self._board.add_scalar(name, value, int(row["epoch"]))
            self._board.flush()


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _open_board(folder: Path, first_epoch: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_epoch)
