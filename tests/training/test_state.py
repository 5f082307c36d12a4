from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitdeploy.errors import ArtifactError, TrainingError
from vitdeploy.training.evaluation import Score
from vitdeploy.training.identity import Identity
from vitdeploy.training.state import Best, State, read_state, write_state

IDENTITY = Identity("key")


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/vitdeploy-was-executed",))


def state() -> State:
    best = Best(epoch=2, top1=0.5, loss=1.25, weights={"w": torch.arange(4.0)})
    return State(update=7, loss_sum=2.5, best=best, history=[{"epoch": 1, "loss": 2.0}])


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    write_state(tmp_path / "a.state.pt", IDENTITY, state(), {"model": {"w": torch.ones(2)}})
    found, parts = read_state(tmp_path / "a.state.pt", IDENTITY)
    assert torch.equal(parts["model"]["w"], torch.ones(2))
    assert torch.equal(found.best.weights["w"], torch.arange(4.0))
    assert (found.update, found.loss_sum, found.history) == (7, 2.5, [{"epoch": 1, "loss": 2.0}])
    assert (found.best.epoch, found.best.top1, found.best.loss) == (2, 0.5, 1.25)


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_text(path: Path) -> None:
    path.write_text("not a state")


def damage_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil()))


def damage_content(path: Path) -> None:
    torch.save({"version": 2}, path)


def after(*epochs: tuple[float, float], images: int = 100) -> int:
    """Return which epoch, from 1, is the best after these (top-1, loss)."""
    state = State()
    for number, (top1, loss) in enumerate(epochs, 1):
        if state.is_best(Score(top1, loss, images)):
            state.best = Best(number, top1, loss, {})
        state.history.append({"epoch": number, "validation_top1": top1, "validation_loss": loss})
    return state.best.epoch


def test_a_clearly_higher_top1_is_better_whatever_the_loss() -> None:
    assert after((0.50, 1.0), (0.70, 9.0)) == 2
    assert after((0.70, 9.0), (0.50, 1.0)) == 1


def test_within_one_standard_error_the_lower_loss_is_better() -> None:
    """p = 0.9 of 100 images has a standard error of 0.03; of 10 000 images, 0.003."""
    assert after((0.90, 1.0), (0.88, 0.9)) == 2
    assert after((0.90, 1.0), (0.88, 0.9), images=10_000) == 1
    assert after((0.90, 1.0), (0.92, 1.1)) == 1
    assert after((0.90, 1.0), (0.92, 1.1), images=10_000) == 2


def test_small_steps_down_never_lead_below_one_standard_error_of_the_peak() -> None:
    assert after((0.90, 1.0), (0.88, 0.9), (0.86, 0.8), (0.84, 0.7)) == 2


def test_a_new_peak_disqualifies_a_best_that_is_now_too_low() -> None:
    assert after((0.88, 0.5), (0.90, 1.0), (0.95, 2.0)) == 3


@pytest.mark.parametrize("damage", [damage_half, damage_empty, damage_text, damage_pickle, damage_content])
def test_a_damaged_state_is_refused_and_nothing_in_it_is_executed(tmp_path: Path, damage: Callable[..., Any]) -> None:
    path = tmp_path / "a.state.pt"
    write_state(path, IDENTITY, state(), {})
    damage(path)
    with pytest.raises(TrainingError, match=re.escape(f"{str(path)!r}, is damaged: train again without resume=True")):
        read_state(path, IDENTITY)
    assert not Path("/tmp/vitdeploy-was-executed").exists()


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "a.state.pt", IDENTITY, state(), {})
    with pytest.raises(TrainingError, match="belongs to a training with other data, model or options"):
        read_state(tmp_path / "a.state.pt", Identity("other key"))


def test_a_missing_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there is no state to go on from"):
        read_state(tmp_path / "a.state.pt", IDENTITY)


def test_a_write_that_fails_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.state.pt"
    write_state(path, IDENTITY, state(), {})
    before = path.read_bytes()

    def full(content, file) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        write_state(path, IDENTITY, state(), {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.state.pt"]
