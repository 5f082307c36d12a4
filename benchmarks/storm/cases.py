"""The cases of the storm: which command meets which damage, which disk, or which kill."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.storm.damage import (
    HOSTILE,
    Prepare,
    cut,
    external_data_elsewhere,
    flipped,
    hostile_classes,
    made_by_hand,
    scrambled,
)
from benchmarks.storm.inputs import PRINTERS, READERS
from benchmarks.storm.reported import reported

OPERATIONS = 20
"""Most operations on files of a command before which it is killed: spread over all, the last ones among them."""
ROOMS = (0.0, 0.5, 0.9)
"""What of its outputs has room on a full disk."""
PAGE = 4096
"""A disk has whole pages."""
TARGETS = ("/dev/null", "own.onnx", "set", "nowhere/new.onnx", "new.pth", "a\x1bb.onnx", ".onnx", "/proc/new.onnx")


@dataclass(frozen=True)
class Case:
    """One command on one damaged input; ``prepare`` damages a copy of the sound inputs that lies in its folder.

    room: Bytes that the disk has left, a file system of its own; None for enough.
    read_only: Whether the folder is on a disk that takes no writing, a mount of its own.
    full_output: Whether what it prints goes to a device without room.
    over_earlier: Whether an earlier output lies in the place of the output.
    kill: When the process is killed, to be run again: a share of the processor time that it takes; None for no kill.
    operation: The number of the operation on files before which it is killed, to be run again; None for no kill.
    """

    kind: str
    name: str
    command: str
    prepare: Prepare = lambda folder, rng: None
    room: int | None = None
    read_only: bool = False
    full_output: bool = False
    over_earlier: bool = False
    kill: float | None = None
    operation: int | None = None

    @property
    def is_killed(self) -> bool:
        return self.kill is not None or self.operation is not None

    @property
    def has_no_room(self) -> bool:
        return self.room is not None or self.full_output


@dataclass(frozen=True)
class Undisturbed:
    """What a command that writes does where nothing stands in its way.

    seconds: The processor time that it takes.
    operations: How many operations on files it does, over an earlier output where there is one.
    made: Name of each file that it writes → its digest.
    size: Of these, in bytes.
    earlier: A folder with the inputs and what another command has written under the same name; None for none.
    left: Names that the other command has written.
    """

    seconds: float
    operations: int
    made: Mapping[str, str]
    size: int
    earlier: Path | None
    left: frozenset[str]


def all_cases(rounds: int, kills: int, undisturbed: Mapping[str, Undisturbed]) -> Iterator[Case]:
    """Yield every case of the storm; the moments of ``kills`` are spread over the time of each command."""
    yield from _damaged(rounds)
    for command in (*PRINTERS, *(one for one in undisturbed if not one.startswith("predict"))):  # predict tells stderr
        yield Case("full disk", "for what is printed", command, full_output=True)
    for command, known in undisturbed.items():
        yield from _disks(command, known)
        yield from _kills(command, known, kills)


def _damaged(rounds: int) -> Iterator[Case]:
    for name, commands in READERS.items():
        for command in commands:
            for damage in (flipped, cut, scrambled):
                for turn in range(rounds):
                    yield Case(damage.__name__, f"{name} {turn}", command, damage(name))
    for kind, name, file, prepare in made_by_hand(READERS):
        for command in READERS[file][:2]:
            yield Case(kind, name, command, prepare)
    for name, commands in READERS.items():
        for other in READERS:
            if other != name and "/" not in other:
                command = " ".join(other if word == name else word for word in commands[0].split())
                if command != commands[0]:
                    yield Case("another kind", f"{other} for {name}", command)
    for target in TARGETS:
        yield Case("outputs", f"to {target!r}", f"export own.safetensors -o {target}")
        yield Case("outputs", f"to {target!r}", f"quantize own.onnx --precision fp16 -o {target}")
    yield Case("graphs", "external data elsewhere", READERS["theirs.onnx"][0], external_data_elsewhere)
    page = "export own.safetensors --labels names.txt -o new.onnx"
    yield Case("names", f"classes called {HOSTILE!r}", page, hostile_classes)
    for thread, command, prepare in reported():
        yield Case("reported", thread, command, prepare)


def _disks(command: str, known: Undisturbed) -> Iterator[Case]:
    for share in ROOMS:
        name = f"room for {share:.0%} of its outputs"
        yield Case("full disk", name, command, room=int(share * known.size) // PAGE * PAGE)
    yield Case("read-only disk", "a mount", command, read_only=True)
    if known.earlier is not None:
        # what is made in steps, each in place of an earlier file, needs no more room than that file
        room = 0 if command.startswith("run ") else known.size // 2 // PAGE * PAGE
        yield Case("full disk", "over an earlier output", command, room=room, over_earlier=True)
        yield Case("read-only disk", "over an earlier output", command, read_only=True, over_earlier=True)


def _kills(command: str, known: Undisturbed, kills: int) -> Iterator[Case]:
    for turn in range(kills):
        share = (turn + 0.5) / kills
        yield Case("killed", f"at {100 * share:.3g} % of its time", command, kill=share)
    count = min(known.operations, OPERATIONS) if known.earlier is not None and kills else 0
    for turn in range(count):
        number = known.operations - turn * known.operations // count
        name = f"before operation {number} of {known.operations}"
        yield Case("killed over an earlier output", name, command, over_earlier=True, operation=number)


def seeded(seed: int, case: Case) -> random.Random:
    """Return the generator of a case's damage: the same whatever other cases are run with it."""
    return random.Random(f"{seed} {case.kind} {case.name} {case.command}")
