from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from vitdeploy.measure.load import watch_other_load


class Core(SimpleNamespace):
    def _asdict(self):
        return dict(vars(self))


@pytest.fixture(name="machine")
def _machine(monkeypatch: pytest.MonkeyPatch):
    """Two usable cores of three, with a clock that the test moves."""
    state = SimpleNamespace(wall=100.0, own=5.0, busy=[50.0, 60.0, 70.0])
    monkeypatch.setattr(time, "perf_counter", lambda: state.wall)
    monkeypatch.setattr(time, "process_time", lambda: state.own)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(
        "psutil.cpu_times",
        lambda percpu: [
            Core(user=busy / 2, system=busy / 4, steal=busy / 4, idle=state.wall * 9, iowait=state.wall, guest=busy)
            for busy in state.busy
        ],
    )
    return state


def test_what_others_used_is_the_usable_cores_busy_time_less_our_own(machine) -> None:
    with watch_other_load() as load:
        machine.wall += 10
        machine.busy = [50 + 8, 60 + 4, 70 + 10]  # 12 s on the two usable cores
        machine.own += 5
    assert load.cores == pytest.approx(0.7)


def test_an_idle_machine_has_no_other_load_and_rounding_does_not_make_it_negative(machine) -> None:
    with watch_other_load() as load:
        machine.wall += 10
        machine.busy = [50 + 4.99, 60, 70]
        machine.own += 5
    assert load.cores == 0.0


def test_where_the_system_does_not_tell_it_is_unknown(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(percpu) -> None:
        raise OSError

    monkeypatch.setattr("psutil.cpu_times", silent)
    with watch_other_load() as load:
        machine.wall += 1
    assert load.cores is None


def test_a_busy_child_is_seen_as_other_load() -> None:
    """The real thing: a process that computes for half a second, while this one waits."""
    import subprocess
    import sys

    code = "import time; end = time.time() + 0.6\nwhile time.time() < end: pass"
    with watch_other_load() as load:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert load.cores is not None
    assert load.cores > 0.5
