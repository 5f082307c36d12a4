"""A storm of damaged and hostile inputs over all commands: none may crash, hang, write, execute or inject anything.

    python -m benchmarks.storm [--seed 0] [--rounds 1] [--kills 20] [--only KIND,…] [--commands NAME,…] [--jobs 2]

Every case is one command in a process and a folder of its own, with 60 seconds of processor time and 2 GB. It is a
finding if it prints a traceback or an "unexpected" error, is ended by a limit or a signal, prints a control character,
leaves anything changed where it failed, changes an input where it did not, runs what a file smuggles in, or lets a name
of a file reach a page as markup. A command that writes also meets a disk without room for all that it writes, and one
that takes no writing, and is killed: at moments spread over the processor time that it takes, and, where an earlier
output lies in its place, before each of its operations on files. It is a finding if an input is changed, if what lies
in the output's place is neither the earlier one nor a whole one, or if the same command does not do its work after
that, and make what it makes undisturbed. Figures go to ``benchmarks/results/storm.json``; findings are printed, and
make the exit code 1. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.storm import disks
from benchmarks.storm.cases import Case, Undisturbed, all_cases, seeded
from benchmarks.storm.inputs import sound_inputs, writers
from benchmarks.storm.judging import is_temporary, judge, snapshot, what_is_broken, what_is_other
from benchmarks.storm.processes import Ended, load_once, run_command

RESULTS = Path(__file__).parent.parent / "results" / "storm.json"


@dataclass
class Outcome:
    """What a case did; ``findings`` are what it must not do."""

    code: int = 0
    seconds: float = 0.0
    memory: int = 0
    killed: bool = False
    left: int = 0
    findings: list[str] = field(default_factory=list)


class Storm:
    """Runs cases, a few at a time, each in a process of its own that looks after the command's."""

    def __init__(self, work: Path, seed: int, jobs: int) -> None:
        self.inputs, self.work, self.seed, self.jobs = work / "inputs", work, seed, jobs
        self.undisturbed: dict[str, Undisturbed] = {}
        self.outcomes: list[tuple[Case, Outcome]] = []

    def watch(self, commands: Mapping[str, str | None]) -> None:
        """Run each command that writes undisturbed: alone, and over what another one has written under its name."""
        for index, (command, other) in enumerate(commands.items()):
            alone = self.work / f"alone-{index}"
            ended = _succeed(command, self.inputs, alone)
            seconds, operations, made, left = ended.seconds, ended.operations, self._new_in(alone), frozenset[str]()
            earlier = None
            if other is not None:
                over = self.work / f"over-{index}"
                _succeed(other, self.inputs, over)
                earlier, left = over / "w", frozenset(self._new_in(over))
                operations = _succeed(command, earlier, self.work / f"twice-{index}").operations
            size = sum(path.stat().st_size for path in (alone / "w" / name for name in made) if path.is_file())
            print(f"{seconds:.1f} s, {operations} operations on files: {command}", file=sys.stderr)
            self.undisturbed[command] = Undisturbed(seconds, operations, made, size, earlier, left)

    def _new_in(self, folder: Path) -> dict[str, str]:
        before = snapshot(self.inputs)
        return {name: found for name, found in snapshot(folder / "w").items() if name not in before}

    def run(self, cases: list[Case]) -> None:
        """Run cases, and print what is found as it is."""
        running: dict[int, tuple[Case, Path]] = {}
        for index, case in enumerate(cases):
            if len(running) >= self.jobs:
                self.wait(running)
            folder = self.work / f"case-{index}"
            pid = os.fork()
            if not pid:
                try:
                    (folder / "w").mkdir(parents=True)
                    (folder / "outcome").write_text(json.dumps(asdict(self.one(case, folder))))
                finally:
                    os._exit(0)
            running[pid] = (case, folder)
            if index % 100 == 99:
                print(f"{index + 1} of {len(cases)}", file=sys.stderr)
        while running:
            self.wait(running)

    def wait(self, running: dict[int, tuple[Case, Path]]) -> None:
        """Wait for one case to end."""
        pid, _ = os.wait()
        case, folder = running.pop(pid)
        found = folder / "outcome"
        failed = Outcome(findings=["the storm itself failed"])
        outcome = Outcome(**json.loads(found.read_text())) if found.exists() else failed
        self.outcomes.append((case, outcome))
        if outcome.findings:
            print(f"{case.kind}: {case.name}: vitdeploy {case.command}")
            print("".join(f"    {finding!r}\n" for finding in outcome.findings), end="", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def one(self, case: Case, folder: Path) -> Outcome:
        """Carry out one case; its disk is gone with this process."""
        work, known = folder / "w", self.undisturbed.get(case.command)
        if case.room is not None or case.read_only:
            disks.own_mounts()
        if case.room is not None:
            disks.mount_disk(work)
        base = known.earlier if case.over_earlier and known is not None and known.earlier is not None else self.inputs
        shutil.copytree(base, work, symlinks=True, dirs_exist_ok=True)
        case.prepare(work, seeded(self.seed, case))
        before = snapshot(work)
        if case.room is not None:
            disks.fill(work, case.room)
        if case.read_only:
            disks.make_read_only(work)
        kill_s = None if case.kill is None or known is None else case.kill * known.seconds
        ended = run_command(case.command, folder, kill_s=kill_s, operation=case.operation, full_output=case.full_output)
        outcome = Outcome()
        if case.is_killed:
            inputs = snapshot(self.inputs)
            before = {name: found for name, found in before.items() if name in inputs}
            if ended.code < 0:
                outcome.killed = True
                outcome.findings.extend(what_is_broken(case, folder))
                ended = run_command(case.command, folder)
        after = snapshot(work)
        outcome.code, outcome.seconds, outcome.memory = ended.code, ended.seconds, ended.memory
        outcome.findings.extend(judge(case, ended, folder, before, after))
        if case.is_killed and ended.code == 0 and known is not None:
            outcome.left = sum(map(is_temporary, after))
            outcome.findings.extend(what_is_other(case, after, before, known, work))
        if outcome.findings and case.room is not None:
            shutil.copytree(work, folder / "left", symlinks=True)
        return outcome

    def figures(self) -> dict[str, object]:
        """Return the outcomes in numbers."""
        outcomes = [outcome for _, outcome in self.outcomes]
        case, slowest = max(self.outcomes, key=lambda one: one[1].seconds)
        kills = Counter(case.command.split()[0] for case, outcome in self.outcomes if outcome.killed)
        return {
            "seed": self.seed,
            "cases": len(outcomes),
            "kinds": dict(sorted(Counter(case.kind for case, _ in self.outcomes).items())),
            "exit_codes": dict(sorted(Counter(str(outcome.code) for outcome in outcomes).items())),
            "killed_before_their_end": dict(sorted(kills.items())),
            "left_unfinished_files": sum(outcome.left > 0 for outcome in outcomes),
            "findings": sum(bool(outcome.findings) for outcome in outcomes),
            "most_processor_s": round(slowest.seconds, 1),
            "by": f"{case.kind}, {case.name}: {case.command.split()[0]}",
            "largest_mb": round(max(outcome.memory for outcome in outcomes) / 1e6),
        }


def _succeed(command: str, before: Path, folder: Path) -> Ended:
    shutil.copytree(before, folder / "w", symlinks=True)
    ended = run_command(command, folder, count=True)
    if ended.code:
        raise SystemExit(f"an undisturbed command fails: {command}\n{(folder / 'stderr').read_text()}")
    return ended


def main() -> int:
    """Run the storm and return 1 where it found anything."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20, help="moments at which each command that writes is killed")
    parser.add_argument("--rounds", type=int, default=1, help="damaged copies of each file, command and kind of damage")
    parser.add_argument("--only", default="", help="only kinds that contain one of these, such as disk,killed")
    parser.add_argument("--commands", default="", help="of those that write, only these, such as package,quantize")
    parser.add_argument("--sample", type=int, default=0, help="a seeded choice of so many cases")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    started = time.monotonic()
    load_once()
    work = Path(tempfile.mkdtemp(prefix="storm-"))
    (work / "inputs").mkdir()
    pid = os.fork()  # what makes the inputs starts threads, and a process with threads must not be forked
    if not pid:
        sound_inputs(work / "inputs")
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        return 1
    named = options.commands.split(",") if options.commands else None
    storm = Storm(work, options.seed, options.jobs)
    storm.watch({one: other for one, other in writers().items() if named is None or one.split()[0] in named})
    print(f"ready after {(time.monotonic() - started) / 60:.1f} minutes", file=sys.stderr)
    every, only = all_cases(options.rounds, options.kills, storm.undisturbed), options.only.split(",")
    cases = [case for case in every if any(text in case.kind for text in only)]
    if options.sample:
        cases = random.Random(options.seed).sample(cases, min(options.sample, len(cases)))
    storm.run(cases)
    figures = storm.figures()
    print(json.dumps({**figures, "minutes": round((time.monotonic() - started) / 60, 1), "kept": str(work)}, indent=2))
    if not (options.only or options.sample or options.commands):
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    if not figures["findings"]:
        shutil.rmtree(work, ignore_errors=True)
    return int(bool(figures["findings"]))


if __name__ == "__main__":
    sys.exit(main())
