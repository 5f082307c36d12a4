"""A task that a small model does not saturate: which group an emoji belongs to, drawn at 64×64 pixels.

    python benchmarks/emoji.py emoji                      # write the images: emoji/train and emoji/test
    python benchmarks/emoji.py emoji --train vit swin     # and train small models on them

On handwritten digits every model is right 99 times in 100, and a loss of one point hides in the noise. Here the classes
are the groups of Unicode's ``emoji-test.txt``, the glyphs are Noto Color Emoji's, and the emoji of the test split are
others than those of the training split: all skin tones of an emoji are in the same one. Backgrounds, scales and shifts
are drawn from seeds, so that the same packages give the same bytes.

Needs what the Debian packages ``fonts-noto-color-emoji`` and ``unicode-data`` hold, and Pillow with Raqm.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from vitdeploy.stages.train import train
from vitdeploy.training.options import TrainOptions

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
PACKAGES = "fonts-noto-color-emoji and unicode-data"
SIDE = 64
GLYPH_SIZE = 109
"""The one size of the bitmaps in the font, in pixels per em."""
TEST_SHARE = 5
"""One emoji in this many is of the test split."""
SKIN_TONES, PRESENTATION = range(0x1F3FB, 0x1F400), 0xFE0F
IMAGES_PER_CLASS = {"train": 1000, "test": 200}

SMALL: dict[str, dict[str, Any]] = {
    "vit": {"patch": 8, "width": 96, "depth": 6, "heads": 4, "init": "xavier", "position_std": 0.2},
    "swin": {"patch": 4, "width": 32, "depths": (2, 4), "heads": (2, 4), "window": 4, "init": "xavier"},
    "pvt_v2": {
        "patches": (7, 3),
        "strides": (4, 2),
        "widths": (32, 64),
        "depths": (2, 2),
        "heads": (1, 2),
        "mlp_ratios": (4, 4),
        "sr_ratios": (2, 1),
        "init": "xavier",
    },
}
"""A small member of each family, which two cores train in minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the images are written")
    parser.add_argument(
        "--train", nargs="+", choices=SMALL, default=[], metavar="family", help=f"of {', '.join(SMALL)}"
    )
    parser.add_argument("--epochs", type=int, default=40, help="of each training (default: %(default)s)")
    arguments = parser.parse_args()
    if missing := what_is_missing():
        sys.exit(missing)
    images = arguments.folder / "images"
    if not images.exists():
        images.parent.mkdir(parents=True, exist_ok=True)
        counts = write_images(images)
        print(", ".join(f"{name}: {count} images" for name, count in counts.items()), flush=True)
    for family in arguments.train:
        top1 = train_small(family, images, arguments.folder / f"{family}.safetensors", arguments.epochs)
        print(f"{family}: top-1 {top1:.2%} on emoji that it has not seen", flush=True)


def train_small(family: str, images: Path, output: Path, epochs: int) -> float:
    """Train a small member of a family, and return its top-1 on the test split."""
    checkpoint = train(images, output, model=family, arguments=SMALL[family], options=TrainOptions(epochs=epochs))
    return float(checkpoint.manifest.metrics["test_top1"])


def what_is_missing() -> str | None:
    """Return what has to be installed before the images can be drawn, or nothing."""
    if missing := [str(path) for path in (FONT, LIST) if not path.exists()]:
        return f"{' and '.join(missing)} not found: install the Debian packages {PACKAGES}"
    if not features.check("raqm"):
        return "this Pillow cannot join emoji of several code points: install one with Raqm, as the wheels of PyPI are"
    return None


def write_images(folder: Path) -> dict[str, int]:
    """Draw both splits, and return the number of images of each."""
    groups = emoji_by_group(LIST.read_text("utf8"))
    font = ImageFont.truetype(str(FONT), GLYPH_SIZE, layout_engine=ImageFont.Layout.RAQM)
    counts = {}
    for split, wanted in IMAGES_PER_CLASS.items():
        for group, families in groups.items():
            members = [tones for name, tones in families.items() if is_test(name) == (split == "test")]
            target = folder / split / group
            target.mkdir(parents=True)
            for index in range(wanted):
                random = np.random.default_rng(seed_of(split, group, str(index)))
                tones = members[index % len(members)]
                drawn = draw(tones[int(random.integers(len(tones)))], font)
                place(drawn, random).save(target / f"{index:04}.png")
        counts[split] = wanted * len(groups)
    return counts


def emoji_by_group(text: str) -> dict[str, dict[str, list[str]]]:
    """Return group → emoji without skin tone → the emoji in all its tones, as ``emoji-test.txt`` lists them."""
    groups: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    group = ""
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip().lower().replace(" & ", "-").replace(" ", "-")
        elif "; fully-qualified" in line:
            points = [int(point, 16) for point in line.partition(";")[0].split()]
            plain = [point for point in points if point not in SKIN_TONES and point != PRESENTATION]
            groups[group]["".join(map(chr, plain))].append("".join(map(chr, points)))
    return {name: dict(families) for name, families in groups.items()}


def is_test(emoji: str) -> bool:
    """Return whether an emoji, without its skin tone, belongs to the test split."""
    return seed_of(emoji) % TEST_SHARE == 0


def seed_of(*words: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:8], "big")


def draw(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return an emoji on a transparent ground, cut to what is drawn."""
    left, top, right, bottom = font.getbbox(emoji)
    image = Image.new("RGBA", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), emoji, font=font, embedded_color=True)
    return image.crop(image.getbbox())


def place(glyph: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return an RGB image with the glyph at a random size and place on a random ground with noise."""
    ends = random.uniform(0, 255, (2, 3))
    ramp = np.linspace(0, 1, SIDE)[:, None, None] * np.ones((1, SIDE, 1))
    ground = ends[0] + (ends[1] - ends[0]) * (ramp if random.integers(2) else ramp.transpose(1, 0, 2))
    ground = np.clip(ground + random.normal(0, 6, ground.shape), 0, 255).astype(np.uint8)
    image = Image.fromarray(ground, "RGB")
    scale = SIDE * random.uniform(0.55, 0.95) / max(glyph.size)
    size = [max(1, round(side * scale)) for side in glyph.size]
    small = glyph.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    corner = [int(random.integers(SIDE - side + 1)) for side in size]
    image.paste(small, (corner[0], corner[1]), small)
    return image


if __name__ == "__main__":
    main()
