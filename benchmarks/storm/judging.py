"""What a case must not have done, as findings in words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.storm.cases import Case, Undisturbed
from benchmarks.storm.damage import SMUGGLED
from benchmarks.storm.inputs import TIMED
from benchmarks.storm.processes import Ended, run_command

PLAN = ".plan.json"
JOURNALS = (".metrics.jsonl", ".budget.jsonl")
"""How files end that a failed command leaves on purpose: the log of a training, what a search goes on from."""
TEMPORARY = (".vitdeploy-", ".tmp")
"""How the names of unfinished files begin, ours and those of safetensors; a killed process leaves them behind."""


def snapshot(folder: Path) -> dict[str, str]:
    """Return path → what is there, by content."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found


def judge(case: Case, ended: Ended, folder: Path, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Yield what a case did and must not do.

    Args:
        case: The case.
        ended: How its command ended, the second time where it was killed.
        folder: The folder of the case, with what was printed.
        before: What lay in it that must stay.
        after: What lies there now.
    """
    text = "".join(path.read_bytes().decode("utf-8", "replace") for path in _printed(folder))
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1][:200] if lines else ""
    if ended.excess:
        yield ended.excess
    if "Traceback (most recent call last)" in text:
        yield "printed a traceback"
    if "unexpected " in text and "Error" in text:
        yield next(line for line in lines if "unexpected " in line)[:300]
    if any(ord(character) < 32 and character not in "\n\r\t" for character in text) or "\u202e" in text:
        yield "printed a control character"
    if ended.code not in (0, 1, 2, 3):
        yield f"ended with {ended.code}: {last}"
    if case.read_only and (ended.code != 1 or "cannot write" not in text):
        yield f"ended with {ended.code} on a read-only disk: {last}"
    if case.has_no_room and (ended.code != 1 or not ("disk is full" in text or "No space left" in text)):
        yield f"ended with {ended.code} on a full disk: {last}"
    if case.is_killed and ended.code != 0:
        yield f"did not go on after it was killed: {last}"
    keeps_parts = case.command.startswith("run ")  # it keeps what it finished, and goes on from there
    changed = [name for name in sorted(after.keys() | before.keys()) if after.get(name) != before.get(name)]
    if ended.code != 0 and not case.full_output and not keeps_parts:
        changed = [name for name in changed if not name.endswith(JOURNALS)]
        if changed:
            yield f"failed and left {', '.join(changed[:3])}"
    elif (lost := [name for name in changed if name in before]) and case.kind != "outputs" and ended.code == 0:
        yield f"changed {', '.join(lost[:3])}"
    if any(name.endswith(SMUGGLED) for name in after) or Path("/tmp", SMUGGLED).exists():
        yield "ran or wrote what a file smuggled in"
    for page in (folder / "w").rglob("*.html"):
        if "<script>alert" in page.read_text(errors="replace"):
            yield f"let a name into {page.name} as markup"


def _printed(folder: Path) -> list[Path]:
    return [path for path in (folder / "stdout", folder / "stderr") if path.is_file()]


def what_is_broken(case: Case, folder: Path) -> Iterator[str]:
    """Yield what is neither the earlier output nor a whole one of what a killed command has left."""
    name = next((word for word in case.command.split() if word.split(".")[0] in ("new", "made")), "")
    verb = case.command.split()[0]
    path = folder / "w" / name
    # without these there is no report, and no run yet
    path /= {"bench": "report.json", "run": "run.json"}.get(verb, "")
    if not path.exists():
        if case.over_earlier:
            yield f"lost {name}"
        return
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            pyarrow.parquet.read_table(path)
        except Exception as error:
            yield f"left {name} broken: {error}"
        return
    if path.suffix == ".html":
        if not path.read_text().rstrip().endswith("</html>"):
            yield f"left {name} broken"
        return
    commands = {"calibration make": f"calibration check {name}", "bench": f"compare {name} {name}"}
    way = "inspect" if verb in ("run", "build", "sensitivity") else "verify"
    command = commands.get(verb, commands.get(" ".join(case.command.split()[:2]), f"{way} {name}"))
    check = folder / "check"
    check.mkdir(exist_ok=True)
    if not (check / "w").exists():
        (check / "w").symlink_to(folder / "w")
    if run_command(command, check).code:
        said = "".join(path.read_text()[-300:] for path in _printed(check))
        yield f"left {name} broken: {said}"


def _named_plans(work: Path) -> set[str]:
    return {
        str((front.parent / name).relative_to(work))
        for front in work.rglob("front.json")
        for name in re.findall(r"[\w.-]+" + re.escape(PLAN), front.read_text())
    }


def what_is_other(
    case: Case, after: Mapping[str, str], before: Mapping[str, str], undisturbed: Undisturbed, work: Path
) -> Iterator[str]:
    """Yield in what the outputs of a command that was killed and ran again differ from those of an undisturbed one.

    Where times decide, they choose the plans of a search: those that its front in ``work`` names.
    """
    made = {name: after[name] for name in after.keys() - before.keys() if not is_temporary(name)}
    timed = any(word in case.command for word in TIMED)
    due = set(undisturbed.made)
    if timed:
        due = {name for name in due if not name.endswith(PLAN)} | _named_plans(work)
    if missing := sorted(due - made.keys()):
        yield f"did not write {', '.join(missing[:3])} after it was killed"
    expected = due | (undisturbed.left if case.over_earlier else set())
    if more := sorted(made.keys() - expected):
        yield f"left {', '.join(more[:3])} after it was killed"
    if timed:
        return
    other = sorted(name for name in made.keys() & undisturbed.made.keys() if made[name] != undisturbed.made[name])
    if other := [name for name in other if not name.endswith(JOURNALS)]:
        yield f"wrote another {', '.join(other[:3])} after it was killed"


def is_temporary(name: str) -> bool:
    """Return whether a path is that of an unfinished file, or lies in an unfinished folder."""
    return any(part.startswith(TEMPORARY) for part in Path(name).parts)
