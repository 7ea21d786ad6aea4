"""The characters that are drawn: the same everywhere and always, each class its own strokes, many hands."""

import hashlib

import numpy as np
import pytest

from slimrank.evaluate.data import glyphs, open_data
from slimrank.evaluate.data.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def test_split():
    return glyphs.split("test")


def test_a_split_holds_every_class_equally_often(test_split):
    pictures, classes = test_split
    assert pictures.shape == (4000, 28, 28)
    assert pictures.dtype == np.uint8
    assert (np.bincount(classes, minlength=400) == 10).all()
    assert len(set(glyphs.class_names())) == 400


def test_no_two_pictures_are_alike(test_split):
    pictures, _ = test_split
    assert len({hashlib.sha256(picture.tobytes()).digest() for picture in pictures}) == len(pictures)


def test_the_same_pictures_are_drawn_again(test_split):
    pictures, classes = glyphs.split("test")
    assert np.array_equal(pictures, test_split[0])
    assert np.array_equal(classes, test_split[1])


def test_classes_differ_and_neighbours_share_a_radical():
    strokes = glyphs._characters(np.random.default_rng(glyphs.SEED)).reshape(20, 20, 5, 4)
    assert len(np.unique(strokes.reshape(400, -1), axis=0)) == 400
    assert (strokes[:, :, :2] == strokes[:, :1, :2]).all()
    assert (strokes[:, :, 2:] == strokes[:1, :, 2:]).all()


def test_the_nearest_mean_picture_finds_the_class_more_often_than_chance(test_split):
    pictures, classes = test_split
    flat = pictures.reshape(len(pictures), -1) / 255
    half = np.zeros(len(flat), bool)
    half[np.argsort(classes, kind="stable").reshape(400, 10)[:, :5].ravel()] = True
    means = np.stack([flat[half & (classes == c)].mean(0) for c in range(400)])
    found = (flat[~half] @ means.T - (means**2).sum(1) / 2).argmax(1)
    assert (found == classes[~half]).mean() > 50 / 400


def test_it_is_a_data_set_of_its_name():
    data = open_data("glyphs", Preprocessing.default(1, 28), limit=50)
    assert data.classes == glyphs.class_names()
    assert {name: len(data.split(name)) for name in ("train", "validation", "test")} == dict.fromkeys(
        ("train", "validation", "test"), 50
    )
