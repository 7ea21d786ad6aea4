"""Network dissection: exact scores on a generated set in Broden's layout, and folders that are none."""

import csv
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from slimrank.errors import SlimrankError
from slimrank.evaluate.concepts import Concepts, generate
from slimrank.evaluate.concepts.dissection import Quantile, dissect
from slimrank.evaluate.data import Preprocessing

COLOUR = Preprocessing.default(3, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("concepts"), 30, 48)


@pytest.fixture(scope="module")
def concepts(folder):
    return Concepts(folder)


def answering(concepts, answer):
    """A network whose units answer with a function of the concepts' masks; it reads images in order, over and over."""
    at = [0]

    def run(images):
        some = [(at[0] + i) % len(concepts) for i in range(len(images))]
        at[0] = (at[0] + len(images)) % len(concepts)
        maps = torch.zeros(len(images), len(concepts.names), *concepts.shape)
        for row, i in zip(maps, some, strict=True):
            index, masks = concepts.annotation(i)
            row[index] = masks.float()
        return answer(maps)

    return run


def test_a_unit_that_is_a_concept_scores_one_and_is_counted_once(concepts):
    def twice(maps):
        return {"once": maps, "twice": torch.cat([maps, maps], 1)}

    found = dissect(answering(concepts, twice), concepts, COLOUR)
    present = {concepts.names[c] for i in range(len(concepts)) for c in concepts.annotation(i)[0].tolist()}
    units = [u for u, name in zip(found.layers["once"].units, concepts.names, strict=True) if name in present]
    assert all(iou == 1.0 for _, _, iou in units)
    assert found.layers["once"].detectors == len(present)
    assert found.layers["twice"].detectors == 2 * len(present)
    assert found.layers["twice"].unique == found.layers["once"].unique == sum(found.layers["once"].by_category.values())
    assert found.unique == 2 * found.layers["once"].unique
    assert found.layers["once"].chance["unique"] < found.layers["once"].unique


def test_disjoint_is_zero_and_rescaling_changes_nothing(concepts):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 4, *concepts.shape, generator=generator)

    def scaled(maps):
        one = maps[:, :4] + noise
        return {"plain": one, "affine": 7 * one - 3, "increasing": one.exp(), "disjoint": -maps[:, :4]}

    found = dissect(answering(concepts, scaled), concepts, COLOUR).layers
    assert found["plain"].units == found["affine"].units == found["increasing"].units
    names = concepts.names[:4]
    assert all(unit[0] != name or unit[2] == 0 for unit, name in zip(found["disjoint"].units, names, strict=True))


def test_overlaps_equal_counting_pixel_by_pixel(concepts):
    """The slow way, with bilinear maps of a coarse layer: thresholds, union and intersection as written in the paper."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(len(concepts), 3, 6, 6, generator=generator)
    at = [0]

    def run(images):
        first = at[0] % len(concepts)
        at[0] += len(images)
        return {"coarse": coarse[first : first + len(images)]}

    found = dissect(run, concepts, COLOUR).layers["coarse"]
    values = coarse.transpose(0, 1).flatten(1)
    level = values.sort(1, descending=True).values[:, int(np.ceil(0.005 * values.shape[1])) - 1]
    masks = F.interpolate(coarse, concepts.shape, mode="bilinear", align_corners=False) >= level[:, None, None]
    labels = torch.zeros(len(concepts), len(concepts.names), *concepts.shape, dtype=torch.bool)
    for i in range(len(concepts)):
        index, here = concepts.annotation(i)
        labels[i, index] = here
    for unit in range(3):
        mine = masks[:, unit, None]
        iou = (mine & labels).sum((0, 2, 3)) / (mine | labels).sum((0, 2, 3)).clamp_min(1)
        assert found.units[unit][2] == pytest.approx(float(iou.max()), abs=1e-4)


def test_levels_come_from_one_pass():
    values = torch.randn(5, 4000, generator=torch.Generator().manual_seed(2))
    top = Quantile(20)
    for part in values.split(333, 1):
        top.add(part)
    assert torch.equal(top.level(), values.sort(1, descending=True).values[:, 19])
    silent = Quantile(20)
    silent.add(torch.cat([torch.ones(1, 3), torch.zeros(1, 997)], 1))
    assert 0 < float(silent.level()) < 1e-30  # only above silence


def test_layout(folder, concepts):
    with open(folder / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(concepts) == 30
    assert {"image", "ih", "iw", "sh", "sw", "color", "object", "part", "scene", "texture"} <= set(rows[0])
    assert len(concepts.names) == 61
    assert set(concepts.category) == {"color", "object", "part", "scene", "texture"}
    index, masks = concepts.annotation(0)
    colours = [i for i, c in enumerate(index.tolist()) if concepts.category[c] == "color"]
    assert bool((masks[colours].sum(0) == 1).all())  # every pixel has one colour
    assert concepts.pixels(0, Preprocessing.default(1, 20)).shape == (1, 20, 20)


def broken(folder, tmp_path, change):
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    change(copy)
    with pytest.raises(SlimrankError) as error:
        [made.annotation(i) for made in [Concepts(copy)] for i in range(len(made))]
    return str(error.value)


def test_folders_that_are_none(folder, tmp_path):
    def rows(copy, name, edit):
        lines = (copy / name).read_text().splitlines()
        (copy / name).write_text("\n".join(edit(lines)) + "\n")

    cases = {
        "000003_color.png": lambda c: (c / "images" / "000003_color.png").unlink(),
        "8x8 pixels": lambda c: Image.new("RGB", (8, 8)).save(c / "images" / "000002_color.png"),
        "cannot be read as an image": lambda c: (c / "images" / "000001_color.png").write_bytes(b"no picture"),
        "has no name": lambda c: rows(c, "label.csv", lambda ls: [ls[0], ls[1].replace("red", ""), *ls[2:]]),
        "which label.csv lacks": lambda c: rows(c, "label.csv", lambda ls: ls[:5]),
        "no category 'banana'": lambda c: rows(c, "label.csv", lambda ls: [ls[0], ls[1].replace("color", "banana"), *ls[2:]]),
        "stands there twice": lambda c: rows(c, "label.csv", lambda ls: [*ls, ls[1]]),
        "names no image": lambda c: rows(c, "index.csv", lambda ls: [ls[0], ls[1].replace("000000.png", "", 1), *ls[2:]]),
        "0x0 pixels": lambda c: rows(c, "index.csv", lambda ls: [line.replace(",48,48,48,48,", ",48,48,0,0,") for line in ls]),
        "must be a whole number": lambda c: rows(c, "index.csv", lambda ls: [line.replace("48,48,0", "48,x,0") for line in ls]),
        "is a grey picture": lambda c: Image.new("L", (48, 48)).save(c / "images" / "000002_color.png"),
        "different sizes": lambda c: rows(
            c, "index.csv", lambda ls: [*ls[:2], ls[2].replace(",48,48,48,48,", ",48,48,24,24,"), *ls[3:]]
        ),
        "Broden's layout": lambda c: (c / "index.csv").unlink(),
    }
    for i, (told, change) in enumerate(cases.items()):
        assert told in broken(folder, tmp_path / str(i), change)
