"""``vitdeploy calibration make | show | check | observe | merge``: images, and what was observed over them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitdeploy.cli.options import DATA_HELP, Json, Samples, Seed, Threads
from vitdeploy.cli.output import print_line

app = typer.Typer(
    help="Make, show and check calibration sets; observe them, and merge what was observed.",
    rich_markup_mode=None,
    no_args_is_help=False,
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A calibration set.")]


@app.command(
    short_help="Choose images and write them with a manifest.",
    epilog="Example: vitdeploy calibration make ./photos:train --samples 512 -o calibration-512",
)
def make(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help=DATA_HELP)] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to write.")],
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="How many images.")] = None,
    seed: Seed = 0,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="FILE", help="A calibration recipe (YAML): data, samples, seed and preprocessing."
        ),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option("--preprocess", metavar="timm:NAME|hf:DIR|FILE", help="Keep this preprocessing in the manifest."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose images, seeded and stratified, and write them with a manifest of digests, labels, source and licence."""
    from vitdeploy import make_calibration_set
    from vitdeploy.cli.output import make_progress, print_json
    from vitdeploy.errors import UsageError
    from vitdeploy.preprocess import preprocess_from
    from vitdeploy.stages.calibration_sets import make_from_recipe, read_calibration_recipe

    if recipe is not None:
        if samples is not None or preprocess is not None or seed != 0:
            raise UsageError("--recipe sets samples, seed and preprocessing: change them there, or leave --recipe out")
        images = make_from_recipe(read_calibration_recipe(recipe), output, data=data, progress=make_progress())
    else:
        if data is None or samples is None:
            raise UsageError("name the DATA and how many --samples, or a --recipe")
        spec = None if preprocess is None else preprocess_from(preprocess)
        images = make_calibration_set(
            data, output, samples=samples, seed=seed, preprocess=spec, progress=make_progress()
        )
    if as_json:
        print_json(images.manifest)
    else:
        print_line(f"wrote {output}: {images.manifest.samples} images of {images.manifest.data}")


@app.command(
    short_help="Show what a set holds and where it is from.",
    epilog="Example: vitdeploy calibration show calibration-512",
)
def show(path: Folder, as_json: Json = False) -> None:
    """Show what a calibration set holds, where it is from, and on what terms."""
    from collections import Counter

    from vitdeploy.cli.output import print_json
    from vitdeploy.stages.calibration_sets import show_calibration_set

    found = show_calibration_set(path)
    if as_json:
        print_json(found)
        return
    counts = Counter(entry.label for entry in found.entries)
    print_line(f"{path}: {found.samples} images of {found.data}, seed {found.seed}")
    print_line(f"source: {found.source or 'not stated'}")
    print_line(f"licence: {found.licence or 'not stated'}")
    if found.classes:
        print_line("images per class: " + ", ".join(f"{name} {counts.get(name, 0)}" for name in found.classes))
    print_line(f"digest: {found.set_sha256}")


@app.command(
    short_help="Check files, labels, size and overlap.",
    epilog="Example: vitdeploy calibration check calibration-512 --against ./photos:test",
)
def check(
    path: Folder,
    against: Annotated[
        str | None, typer.Option("--against", metavar="DATA", help="Data that must share no image with the set.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check files, labels, duplicates, size and overlap; exits with 1 where a check fails."""
    from vitdeploy.cli.output import check_words, print_json
    from vitdeploy.errors import CalibrationError
    from vitdeploy.stages.calibration_sets import check_calibration_set

    checks = check_calibration_set(path, against=against)
    if as_json:
        print_json(checks)
    else:
        for entry in checks:
            print_line(f"{entry.name}: {check_words(entry)}")
    failed = [entry.name for entry in checks if entry.status == "failed"]
    if failed:
        raise CalibrationError(f"{str(path)!r} failed: {', '.join(failed)}")


@app.command(
    short_help="Keep a graph's ranges over images as a table.",
    epilog="Example: vitdeploy calibration observe vit.onnx ./photos:train --shard 1/8 -o 1.calib.json",
)
def observe(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An FP32 graph.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="NAME.calib.json", help="The calibration table to write.")
    ],
    profile: Annotated[
        Literal["linear", "mha"], typer.Option("--profile", help="mha observes the factors of attention too.")
    ] = "linear",
    rounding: Annotated[
        Literal["nearest", "gptq"],
        typer.Option(
            "--rounding", help="gptq keeps what 'quantize --rounding gptq' wants: up to 32 MB of each tensor."
        ),
    ] = "nearest",
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Every N-th image from the I-th on, counted from 1.")
    ] = None,
    samples: Samples = None,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Run a graph over images and keep what was observed, for 'quantize --calibration' and 'merge'."""
    from vitdeploy import ObserveOptions, observe_calibration
    from vitdeploy.cli.output import make_progress, print_artifact

    options = ObserveOptions(
        profile=profile,
        rounding=rounding,
        shard=parse_shard(shard),
        samples=samples,
        seed=seed,
        threads=threads,
    )
    print_artifact(observe_calibration(model, data, output, options=options, progress=make_progress()), as_json)


@app.command(
    short_help="Merge the tables of shards.",
    epilog="Example: vitdeploy calibration merge 1.calib.json 2.calib.json -o vit.calib.json",
)
def merge(
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE…", help="Tables of disjoint images of one graph.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="NAME.calib.json", help="The calibration table to write.")
    ],
    as_json: Json = False,
) -> None:
    """Merge tables of shards into the table of one pass over all their images."""
    from vitdeploy import merge_calibration_tables
    from vitdeploy.cli.output import print_artifact

    print_artifact(merge_calibration_tables(tables, output), as_json)


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Return (i, n) of ``I/N``.

    Raises:
        UsageError: It is not written so.
    """
    from vitdeploy.errors import UsageError

    if text is None:
        return None
    first, _, step = text.partition("/")
    if not (first.isdecimal() and step.isdecimal()):
        raise UsageError(f"--shard is {text!r}, expected I/N as in 1/8")
    return int(first), int(step)
