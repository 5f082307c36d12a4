"""Train on a folder of photographs with every recipe of the package: two epochs at 224 pixels, a small model.

    python benchmarks/photographs.py                      # every recipe, about 10 minutes on 2 cores
    python benchmarks/photographs.py deit swin            # these
    python benchmarks/photographs.py --only-make photos   # write the folder and train nothing

The photographs are crops of real ones that come with installed packages: scikit-learn's, scikit-image's (where it is
installed), and the backgrounds of a desktop under /usr/share; textures are drawn where those are fewer than the
classes. Each source is a class. The files are what cameras and programs write: turned by EXIF, progressive, CMYK and
greyscale JPEGs, PNGs with a palette, with transparency and with 16 bits. Each training is the command that a user would
type, in a process of its own.

Ends with 1 where a training fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitdeploy.training.recipe import read_training_recipe, recipe_names

SIDE = 224
CLASSES = 4
IN_PACKAGES = {
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "portrait": ("skimage", "data/astronaut.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
DRAWN: dict[str, tuple[int, tuple[tuple[int, int, int], ...], float]] = {
    "clouds": (0, ((64, 110, 190), (150, 180, 220), (250, 250, 250)), 1.9),
    "gravel": (1, ((40, 36, 32), (130, 120, 105), (225, 215, 200)), 0.9),
    "leaves": (2, ((10, 30, 8), (60, 110, 30), (190, 200, 90)), 1.3),
}
"""What is drawn where the packages have too few photographs: seed, colours from dark to bright, roughness."""
BACKGROUNDS = Path("/usr/share/backgrounds")
ORIENTATION = 0x0112

PLAIN = ["--model", "vit", "--model-arg", f"image_size={SIDE}", "--model-arg", "patch=16", "--model-arg", "width=64"]
SMALL = {
    "deit": [*PLAIN, "--model-arg", "depth=2", "--model-arg", "heads=2"],
    "deit_distilled": ["--model", "deit", *PLAIN[2:], "--model-arg", "depth=2", "--model-arg", "heads=2"],
    "swin": [
        *("--model", "swin", "--model-arg", f"image_size={SIDE}", "--model-arg", "width=32"),
        *("--model-arg", "depths=[1, 1]", "--model-arg", "heads=[2, 2]", "--model-arg", "window=7"),
    ],
    "t2t": [
        *("--model", "t2t", "--model-arg", f"image_size={SIDE}", "--model-arg", "width=64"),
        *("--model-arg", "depth=2", "--model-arg", "heads=2", "--model-arg", "token_width=16"),
    ],
}
"""For each recipe a small model of its family, where the recipe names one of full size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="recipe", help=f"some of {', '.join(recipe_names())}")
    parser.add_argument("--images", type=int, default=200, help="how many photographs (default: %(default)s)")
    parser.add_argument("--only-make", type=Path, metavar="FOLDER", help="write the photographs there and end")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in recipe_names()]
    if unknown:
        parser.error(f"there is no recipe {unknown[0]!r}, expected some of {', '.join(recipe_names())}")
    if arguments.only_make is not None:
        make_photographs(arguments.only_make, arguments.images)
        print(f"wrote {arguments.images} photographs to {arguments.only_make}")
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_photographs(work / "photos", arguments.images)
        failed = [name for name in arguments.names or recipe_names() if not report(name, work)]
    sys.exit(1 if failed else 0)


def report(recipe: str, work: Path) -> bool:
    """Train with a recipe, print a line, and return whether it went well."""
    start = time.monotonic()
    try:
        metrics = train(recipe, work)
    except RuntimeError as error:
        print(f"{recipe:15} {error}", flush=True)
        return False
    top1, seconds = metrics["validation_top1"], time.monotonic() - start
    print(f"{recipe:15} two epochs in {seconds:4.0f} s, validation top-1 {100 * top1:.1f} %", flush=True)
    return True


def train(recipe: str, work: Path) -> dict[str, float]:
    """Train two epochs with a recipe and return the metrics of the checkpoint."""
    distils = read_training_recipe(recipe).options.distillation is not None
    teacher = ["--teacher", str(teacher_of(work))] if distils else []
    short = ["--recipe", recipe, "--epochs", "2", "--set", "warmup_epochs=0.5", "--amp-dtype", "float32"]
    return run_train(work, work / f"{recipe}.safetensors", [*short, *SMALL.get(recipe, []), *teacher])


def teacher_of(work: Path) -> Path:
    """Return a small model that knows the same classes, trained on first use."""
    output = work / "teacher.safetensors"
    if not output.exists():
        run_train(work, output, [*SMALL["deit"], "--epochs", "2", "--set", "augmentation.policy=null"])
    return output


def run_train(work: Path, output: Path, options: list[str]) -> dict[str, float]:
    """Carry out ``vitdeploy train`` and return the metrics that it printed.

    Raises:
        RuntimeError: It failed; the message has the command and its error.
    """
    command = [sys.executable, "-m", "vitdeploy", "train", str(work / "photos"), "-o", str(output), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode} of {shlex.join(command[1:])}\n{done.stderr.strip()}")
    metrics: dict[str, float] = json.loads(done.stdout)["manifest"]["metrics"]
    return metrics


def make_photographs(folder: Path, count: int = 200, seed: int = 0) -> None:
    """Write ``count`` photographs into class folders, in equal parts."""
    originals = dict(find_originals())
    for name in list(DRAWN)[: max(CLASSES - len(originals), 0)]:
        originals[name] = draw_scene(*DRAWN[name])
    shutil.rmtree(folder, ignore_errors=True)
    draw = random.Random(seed)
    names = list(originals)[:CLASSES]
    for name in names:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        name = names[number % len(names)]
        write = FORMS[number // len(names) % len(FORMS)]
        write(crop(originals[name], draw), folder / name / f"{number:04}")


def find_originals() -> Iterator[tuple[str, Image.Image]]:
    """Yield name and image of the photographs that installed packages bring."""
    for name, (package, file) in IN_PACKAGES.items():
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / file if spec is not None and spec.origin is not None else None
        if path is not None and path.is_file():
            yield name, Image.open(path).convert("RGB")
    for path in sorted(BACKGROUNDS.rglob("*.jpg")) if BACKGROUNDS.is_dir() else ():
        yield path.stem, Image.open(path).convert("RGB")


def draw_scene(seed: int, colours: Sequence[tuple[int, int, int]], roughness: float) -> Image.Image:
    """Return a texture of 800×600 pixels whose power falls with frequency as that of a photograph does.

    Args:
        seed: Of the texture.
        colours: From its darkest to its brightest place.
        roughness: The exponent with which the amplitude falls: 1 is sand, 2 is clouds.
    """
    draw = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(600)[:, None], np.fft.fftfreq(800)[None]
    falling = np.maximum(np.hypot(rows, columns), 1 / 800) ** -roughness
    field = np.fft.ifft2(np.fft.fft2(draw.standard_normal((600, 800))) * falling).real
    rank = np.linspace(0, 1, field.size)[field.ravel().argsort().argsort()].reshape(field.shape)
    steps = np.linspace(0, 1, len(colours))
    channels = [np.interp(rank, steps, [colour[channel] for colour in colours]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def crop(original: Image.Image, draw: random.Random) -> Image.Image:
    """Return a part of a photograph, at the size of a small camera picture, sometimes upright."""
    wide = draw.random() < 0.7
    part = draw.uniform(0.4, 0.9)
    width, height = (400, 300) if wide else (240, 320)
    side = min(original.width / width, original.height / height) * part
    left = draw.uniform(0, original.width - side * width)
    top = draw.uniform(0, original.height - side * height)
    return original.resize(
        (width, height), Image.Resampling.BICUBIC, (left, top, left + side * width, top + side * height)
    )


def _jpeg(image: Image.Image, stem: Path) -> None:
    image.save(stem.with_suffix(".jpg"), quality=90)


def _turned(image: Image.Image, stem: Path) -> None:
    """Store the image turned, with the tag that turns it back (6: by a quarter clockwise)."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(stem.with_suffix(".JPG"), quality=85, exif=exif)


def _progressive(image: Image.Image, stem: Path) -> None:
    image.save(stem.with_suffix(".jpeg"), quality=75, progressive=True)


def _cmyk(image: Image.Image, stem: Path) -> None:
    image.convert("CMYK").save(stem.with_suffix(".jpg"), quality=92)


def _grey(image: Image.Image, stem: Path) -> None:
    image.convert("L").save(stem.with_suffix(".jpg"), quality=90)


def _palette(image: Image.Image, stem: Path) -> None:
    image.quantize(128).save(stem.with_suffix(".png"))


def _transparent(image: Image.Image, stem: Path) -> None:
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(stem.with_suffix(".png"))


def _sixteen_bits(image: Image.Image, stem: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(stem.with_suffix(".png"))


FORMS: tuple[Callable[[Image.Image, Path], None], ...] = (
    _jpeg, _turned, _jpeg, _progressive, _jpeg, _cmyk, _jpeg, _grey, _jpeg, _palette, _jpeg, _transparent, _jpeg,
    _sixteen_bits,
)  # fmt: skip


if __name__ == "__main__":
    main()
