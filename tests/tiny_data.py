"A complete data set of small images in the raw layout, for tests of source, audit and shards."

import io
import random
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from card_classifier.cards import CLASS_NAMES


def noise_jpeg(seed: int, size: int = 16) -> bytes:
    "A JPEG that resembles no other one."
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def tiny_files(n_train: int = 1) -> dict[str, bytes]:
    "Paths and contents of a data set with `n_train` training images of each class and one of each outside training."
    paths = [f"{split}/{name}/{number:03d}.jpg" for split, count in (("train", n_train), ("valid", 1), ("test", 1))
             for name in CLASS_NAMES for number in range(1, count + 1)]
    return {path: noise_jpeg(seed) for seed, path in enumerate(paths)}


def write_files(root: Path, files: dict[str, bytes], shuffle: int|None = None) -> Path:
    "Write files, in an order that `shuffle` seeds."
    order = sorted(files)
    if shuffle is not None:
        random.Random(shuffle).shuffle(order)
    for path in order:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(files[path])
    return root


def write_zip(zip_file: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    "Pack files as they are named."
    with zipfile.ZipFile(zip_file, "w", method) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return zip_file
