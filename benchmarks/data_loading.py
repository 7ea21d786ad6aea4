"""How fast do images reach the network, from files of ImageNet's size, with worker processes and without?

    python benchmarks/data_loading.py --imagenet ../shared/data/imagenet-sample-1000

Photographs of the sample folder, scaled to a shorter side of 375 pixels (ImageNet's usual one) and saved as JPEG of quality
90; resize 256, crop 224. `decode`: Pillow alone, one thread, to RGB. `pixels`: that, scaled and cropped, one thread.
`threads`: batches of 64 from this process's threads (workers 0), `workers N`: from N processes, for the middle and for random
crops. `train`: whole training steps of MobileNetV3-small (random crops, flips) on one thread of PyTorch; `no images`: the same
steps on one batch that is always there. All in turn, `--rounds` times; the best counts, for whatever else the machine does only
adds. Where it does much else, `cpu_ms_an_image` (of all processes) is the figure to compare. `index`: a folder of 100,000 files
in 1,000 classes, opened; then ten shuffled batches of it, and the process's peak of memory by then beside what all pixels take.
"""

import argparse
import itertools
import math
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from rows import Rows

from slimrank.compress.stages.finetune import fresh
from slimrank.compress.training.loop import TrainingRun
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.data import DataSpec, Images, Preprocessing
from slimrank.evaluate.imagespec import ImageSpec

BATCH, CLASSES, A_CLASS = 64, 1000, 100
TRAINED = 128  # images of an epoch
SEEN = ImageSpec(size=224, resize=256).over(Preprocessing.default(3, 224))


def photographs(source: Path, folder: Path, count: int) -> list[Path]:
    """Files as ImageNet has them."""
    made = []
    for i, path in enumerate(itertools.islice(sorted(source.glob("test/*/*")), count)):
        with Image.open(path) as picture:
            scale = 375 / min(picture.size)
            large = picture.convert("RGB").resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
        made.append(folder / f"{i}.jpg")
        large.save(made[-1], quality=90)
    return made


def decode(paths: list[Path]) -> None:
    for path in paths:
        with Image.open(path) as picture:
            picture.convert("RGB")


def pixels(paths: list[Path]) -> None:
    for path in paths:
        with Image.open(path) as picture:
            SEEN.pixels(picture)


def batches(images: Images, crops: bool) -> None:
    for _ in images.batches(BATCH, shuffle=torch.Generator().manual_seed(0), crops=crops):
        pass


class Kept(Images):
    """Images of which the first batch serves for all."""

    def stream(self, parts, seeds=None):
        first = getattr(self, "first", None)
        if first is None:
            first = self.first = self.read(parts[0].tolist())
        return (first[: len(part)] for part in parts)


def epoch(images: Images) -> None:
    network = fresh("mobilenet_v3_small", None, [str(i) for i in range(CLASSES)], 3, None, 0).model
    recipe = Recipe(1, 0.01, augment="crop+flip", batch=BATCH, precision="fp32")
    TrainingRun(network, images, None, recipe, None, False, []).epoch()


def cpu_seconds() -> float:
    """Of this process and of the workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def index(photograph: Path, folder: Path) -> dict[str, float]:
    """Open 100,000 files (links to one in each class), and read ten batches of them."""
    for c in range(CLASSES):
        (folder / "train" / f"n{c:08}").mkdir(parents=True)
        first = folder / "train" / f"n{c:08}" / "0.jpg"
        shutil.copy(photograph, first)
        for i in range(1, A_CLASS):
            os.link(first, first.with_name(f"{i}.jpg"))
    began, used = time.perf_counter(), cpu_seconds()
    data = DataSpec(f"folder:{folder}", workers=2).open(SEEN)
    row = {"images": CLASSES * A_CLASS, "seconds": round(time.perf_counter() - began, 2)}
    row["cpu_seconds"] = round(cpu_seconds() - used, 2)
    generator = torch.Generator().manual_seed(0)
    for _ in itertools.islice(data.split("train").batches(BATCH, shuffle=generator, crops=True), 10):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    decoded = CLASSES * A_CLASS * math.prod(SEEN.shape) / 1e6
    return {**row, "peak_mb": round(peak), "decoded_mb": round(decoded)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenet", type=Path, required=True, help="folder with test/CLASS/*.JPEG")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows("data_loading", None, torch=torch.__version__, cores=os.cpu_count(), images=args.images, batch=BATCH)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = photographs(args.imagenet, folder, args.images)
        rows.value["rows"]["index"] = index(paths[0], folder / "many")
        print(rows.value["rows"]["index"], flush=True)
        labels = torch.arange(len(paths)) % CLASSES
        made: dict[str, Callable[[], None]] = {"decode": lambda: decode(paths), "pixels": lambda: pixels(paths)}
        for workers in (0, 1, 2):
            images, name = Images(paths, labels, SEEN, workers), f"{workers} workers" if workers else "threads"
            for crops in (False, True):
                made[f"{name}, {'random' if crops else 'middle'}"] = lambda i=images, c=crops: batches(i, c)
            made[f"train, {name}"] = lambda i=images: epoch(i.subset(torch.arange(TRAINED)))
        made["train, no images"] = lambda: epoch(Kept(paths[:TRAINED], labels[:TRAINED], SEEN))
        wall, cpu = (dict.fromkeys(made, math.inf) for _ in range(2))
        for _ in range(args.rounds):
            for name, run in made.items():
                began, used = time.perf_counter(), cpu_seconds()
                run()
                wall[name] = min(wall[name], time.perf_counter() - began)
                cpu[name] = min(cpu[name], cpu_seconds() - used)
                count = TRAINED if name.startswith("train") else len(paths)
                row = {
                    "images_per_second": round(count / wall[name], 1),
                    "cpu_ms_an_image": round(1e3 * cpu[name] / count, 2),
                }
                rows.value["rows"][name] = row
                print(f"{name:20}", row, flush=True)
    rows.value["about"]["load"] = [round(load, 1) for load in os.getloadavg()]
    rows.save()


if __name__ == "__main__":
    import slimrank.evaluate.data.images as images_module

    images_module.CACHE_BYTES = 0  # as with data that do not fit
    main()
