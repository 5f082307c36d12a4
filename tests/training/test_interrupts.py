from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from vitdeploy.training.interrupts import deferred_interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_and_handlers_are_put_back(number: Any) -> None:
    before = signal.getsignal(number)
    with deferred_interrupts() as interrupt:
        seen = [interrupt.requested]
        os.kill(os.getpid(), number)
        seen.append(interrupt.requested)
        assert seen == [False, True]
    assert signal.getsignal(number) is before


def test_a_second_signal_later_stops_at_once() -> None:
    with deferred_interrupts() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # the same request, by another way
        interrupt.at -= 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_gets_an_interrupt_that_nobody_requests() -> None:
    found = []

    def work() -> None:
        with deferred_interrupts() as interrupt:
            found.append((interrupt.requested, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]
