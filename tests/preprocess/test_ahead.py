"""Tests of work done ahead of whoever takes its results."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from vitdeploy.preprocess.ahead import map_ahead


def test_results_come_in_order_and_no_further_ahead_than_asked() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    results = map_ahead(lambda item: item * item, items(), ahead=4)
    for count in range(50):
        assert next(results) == count * count
        assert len(taken) <= count + 1 + 4
    assert list(results) == []


def test_an_error_is_met_at_its_place() -> None:
    def invert(item: int) -> float:
        return 1 / item

    results = map_ahead(invert, [2, 1, 0, 4], ahead=4)
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("vitdeploy-")}


@pytest.mark.parametrize("by", ["worker", "feeder", "taker", "stranger"])
def test_what_nobody_takes_any_more_is_given_up_by_whichever_thread_drops_it(by: str) -> None:
    before = _threads()
    held: list[Iterator[int]] = []
    left, dropped = threading.Event(), threading.Event()

    def drop() -> None:
        assert left.wait(10)
        held.clear()  # the last reference: the generator is closed here, as the garbage collector may do
        dropped.set()

    def items() -> Iterator[int]:
        yield 0
        if by == "feeder":
            drop()
        yield from range(1, 100)

    def work(item: int) -> int:
        if item == 1 and by == "worker":
            drop()
        return item

    held.append(map_ahead(work, items(), ahead=3))
    assert next(held[0]) == 0
    left.set()
    if by == "taker":
        drop()
    elif by == "stranger":
        threading.Thread(target=drop).start()
    assert dropped.wait(10)
    for thread in _threads() - before:
        thread.join(10)
        assert not thread.is_alive()
