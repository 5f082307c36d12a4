"""The camera loop of the documentation, with a camera that is faster than the model."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vitdeploy import NewestFrames, load
from vitdeploy.artifacts import OnnxModel
from vitdeploy.datasets import open_dataset
from vitdeploy.runtime.prediction import ClassProbability, Prediction

PAGE = Path(__file__).parents[2] / "docs" / "deploying.md"


@pytest.fixture
def documented() -> dict[str, Any]:
    """What the block of the page defines."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf8"), re.DOTALL)
    (block,) = (text for text in blocks if "watch" in text)
    names: dict[str, Any] = {}
    exec(compile(block, PAGE.name, "exec"), names)
    assert sum(bool(line.strip()) for line in block.splitlines()) <= 12
    return names


class Capture:
    """A camera as OpenCV gives it: BGR frames, and None after the last one; ``ended`` is set then."""

    def __init__(self, frames: list[NDArray[np.uint8]]) -> None:
        self._frames = iter(frames)
        self.ended = threading.Event()

    def read(self) -> tuple[bool, NDArray[np.uint8] | None]:
        frame = next(self._frames, None)
        if frame is None:
            self.ended.set()
        return frame is not None, frame


def test_the_documented_loop_shows_the_newest_frame_and_counts_the_others(
    documented: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [np.full((8, 8, 3), value, np.uint8) for value in range(50)]
    for value, frame in enumerate(frames):
        frame[..., 0] = 255 - value  # blue first
    capture = Capture(frames)
    seen: list[int] = []

    class Slow:
        def predict(self, frame: NDArray[np.uint8], top: int) -> list[Prediction]:
            assert capture.ended.wait(30)
            assert int(frame[0, 0, 2]) == 255 - int(frame[0, 0, 0])  # blue last: as the model wants it
            seen.append(int(frame[0, 0, 0]))
            return [Prediction(image="frame", classes=(ClassProbability(index=0, name="cat", probability=0.9),))]

    documented["watch"](documented["camera"](capture), Slow())
    assert seen[-1] == 49
    assert len(seen) <= 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"cat 90%, {50 - len(seen)} of 50 frames dropped"


def test_the_documented_loop_says_what_predict_says(
    documented: dict[str, Any], tiny_onnx: OnnxModel, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_dataset("digits:test")
    frame = np.repeat(np.asarray(dataset.image(4))[..., None], 3, axis=2)
    with load(tiny_onnx) as model:
        best = model.predict(frame, top=1)[0].classes[0]
        documented["watch"](documented["camera"](Capture([frame])), model)
    expected = f"{best.name} {best.probability:.0%}, 0 of 1 frames dropped"
    assert capsys.readouterr().out.splitlines() == [expected]


def test_a_reader_that_keeps_up_misses_nothing() -> None:
    asked = threading.Semaphore(0)

    def camera() -> Iterator[int]:
        for number in range(5):
            assert asked.acquire(timeout=30)
            yield number

    frames = NewestFrames(camera())
    found = []
    asked.release()
    for number in frames:
        found.append(number)
        asked.release()
    assert found == [0, 1, 2, 3, 4]
    assert (frames.taken, frames.dropped) == (5, 0)


def test_the_error_of_a_camera_comes_after_its_last_frame() -> None:
    def camera() -> Iterator[int]:
        yield 1
        raise OSError("unplugged")

    frames = NewestFrames(camera())
    assert next(frames) == 1
    with pytest.raises(OSError, match="unplugged"):
        next(frames)
    with pytest.raises(StopIteration):
        next(frames)


def test_closing_ends_the_frames_and_the_reading() -> None:
    read = threading.Semaphore(0)
    go = threading.Semaphore(0)

    def endless() -> Iterator[int]:
        while True:
            read.release()
            assert go.acquire(timeout=30)
            yield 0

    frames = NewestFrames(endless())
    assert read.acquire(timeout=30)
    frames.close()
    assert list(frames) == []
    go.release()
    for thread in threading.enumerate():
        if thread.name == "vitdeploy-frames":
            thread.join(30)
            assert not thread.is_alive()
    assert frames.taken == 0
