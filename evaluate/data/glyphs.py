"""Characters that nobody uses: 400 classes drawn here from a seed, a data set of many classes that needs no download.

As in Chinese characters, a class is a radical, of which there are 20, with one of 20 other parts: neighbours in the order of
classes share strokes. A picture is such a character in somebody's hand: turned, sheared, scaled, moved, its strokes' ends
displaced, with a pen of some width, on noise.
"""

import numpy as np

RADICALS, PARTS = 20, 20
SIZE = 28
A_CLASS = {"train": 30, "test": 10}
STROKES = (2, 3)  # of a radical, of a part
LATTICE = 4  # strokes lead from one point to another of LATTICE x LATTICE
SEED = 0
CHUNK = 50  # pictures drawn at once, in the processor's cache


def class_names() -> list[str]:
    """Name classes by radical and part, radical after radical."""
    return [f"r{radical:02}-p{part:02}" for radical in range(RADICALS) for part in range(PARTS)]


def split(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw the split `train` or `test`: grey pictures, uint8 [n, SIZE, SIZE], and their classes, int64 [n]."""
    rng = np.random.default_rng([SEED, sorted(A_CLASS).index(name) + 1])
    strokes = _characters(np.random.default_rng(SEED))
    classes = rng.permutation(np.repeat(np.arange(len(strokes)), A_CLASS[name]))
    return np.concatenate(
        [_written(strokes[part], rng) for part in np.split(classes, range(CHUNK, len(classes), CHUNK))]
    ), classes


def _characters(rng: np.random.Generator) -> np.ndarray:
    """Strokes of each class, [classes, strokes, 2 ends, 2 coordinates] in -1..1; no two radicals or parts share two strokes."""
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, LATTICE)] * 2), -1).reshape(-1, 2)
    pairs = [(a, b) for a in range(len(points)) for b in range(a) if 0.5 < np.hypot(*(points[a] - points[b])) < 1.7]

    def drawn(count: int, strokes: int) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        while len(found) < count:
            candidate = tuple(sorted(rng.choice(len(pairs), strokes, replace=False)))
            if all(len(set(candidate) & set(other)) < 2 for other in found):
                found.append(candidate)
        return found

    radicals, parts = drawn(RADICALS, STROKES[0]), drawn(PARTS, STROKES[1])
    return np.array([[points[list(pairs[i])] for i in radical + part] for radical in radicals for part in parts])


def _written(strokes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write characters, [n, strokes, 2, 2], each in another hand; uint8 [n, SIZE, SIZE]."""
    n = len(strokes)
    turn, shear = rng.uniform(-0.2, 0.2, n), rng.uniform(-0.2, 0.2, n)
    wide, tall = rng.uniform(0.75, 1.05, (2, n))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    hand = np.einsum("ijn,jkn->nik", rotation, np.array([[wide, shear], [np.zeros(n), tall]]))
    ends = np.einsum("nij,nsej->nsei", hand, strokes + rng.normal(0, 0.07, strokes.shape))
    ends = (ends * 0.36 + 0.5) * SIZE + rng.uniform(-2, 2, (n, 1, 1, 2))
    y, x = np.indices((SIZE, SIZE)).reshape(2, -1) + 0.5
    (x0, y0), (dx, dy) = (
        np.moveaxis(ends[:, :, 0, :, None], 2, 0),
        np.moveaxis((ends[:, :, 1] - ends[:, :, 0])[..., None], 2, 0),
    )
    x, y = x - x0, y - y0
    share = np.clip((x * dx + y * dy) / np.maximum(dx**2 + dy**2, 1e-9), 0, 1)
    distance = np.sqrt(((x - share * dx) ** 2 + (y - share * dy) ** 2).min(1))
    ink = np.clip(rng.uniform(0.9, 1.6, (n, 1)) + 0.5 - distance, 0, 1) * rng.uniform(0.6, 1, (n, 1))
    grey = ink + rng.normal(0, 0.12, ink.shape)
    pictures: np.ndarray = (255 * np.clip(grey, 0, 1)).round().astype(np.uint8).reshape(n, SIZE, SIZE)
    return pictures
