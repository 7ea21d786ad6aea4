"""Which files of a folder are images: in torchvision's order, nothing hidden, nothing left out without a word."""

import os
import warnings

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from slimrank.cli import main
from slimrank.errors import SlimrankError, SlimrankWarning
from slimrank.evaluate.data import Preprocessing, open_data

RGB = Preprocessing.default(3, 8)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


@pytest.fixture
def root(tmp_path):
    for name in ("ant/2.png", "ant/10.jpg", "ant/B.png", "bee/deep/er/1.png", "bee/deep.er.png", "bee/a/0.png", "bee/z.webp"):
        picture(tmp_path / "test" / name)
    return tmp_path


def opened(root):
    """The test split, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = open_data(f"folder:{root}", RGB, validation="test:0.01")
    assert all(warning.category is SlimrankWarning for warning in said)
    both = [*zip(data.test.pictures, data.test.labels.tolist(), strict=True)]
    both += zip(data.validation.pictures, data.validation.labels.tolist(), strict=True)
    return data.classes, both, " ".join(str(warning.message) for warning in said)


def test_images_are_torchvisions_in_its_order(root):
    theirs = ImageFolder(root / "test")
    classes, both, said = opened(root)
    assert classes == theirs.classes
    assert sorted(both) == sorted(theirs.samples)
    assert [pair for pair in theirs.samples if pair in both[:-1]] == both[:-1]  # the last one is validation
    assert said == ""


@pytest.mark.parametrize(
    "litter",
    [".DS_Store", ".ipynb_checkpoints/2.png", "__MACOSX/ant/._2.png", "ant/._2.png", "ant/.thumbnails/2.png", ".x/y"],
)
def test_what_is_hidden_is_passed_over(root, litter):
    clean = opened(root)
    path = root / "test" / litter
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0")
    assert opened(root) == clean


@pytest.mark.parametrize("suffix", ["gif", "jfif", "jp2", "qoi", "GIF"])
def test_pictures_beyond_torchvisions_are_read_and_told(root, suffix):
    _, before, _ = opened(root)
    for i in range(3):
        picture(root / "test" / "bee" / f"{i}.{suffix}")
    _, after, said = opened(root)
    assert len(after) == len(before) + 3
    assert f"3 .{suffix.lower()} are read as well" in said


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ant/photo.heic", ".heic"),
        ("ant/Notes.TXT", ".txt"),
        ("ant/deep/n01440764_10026", "without a suffix"),
        ("loose.png", "outside the classes' folders"),
    ],
)
def test_what_is_left_out_is_told(root, name, kind):
    _, before, _ = opened(root)
    (root / "test" / name).parent.mkdir(exist_ok=True)
    (root / "test" / name).write_bytes(b"?")
    _, after, said = opened(root)
    assert after == before
    assert f"are left out (1 {kind})" in said


def test_the_command_line_tells_it_in_one_line(trained, tmp_path, capsys):
    for label in range(10):
        picture(tmp_path / "test" / str(label) / "a.png")
        picture(tmp_path / "test" / str(label) / "b.gif")
    (tmp_path / "test" / "3" / "c.heic").write_bytes(b"?")
    assert main(["evaluate", str(trained), "--data", f"folder:{tmp_path}", "--validation", "test:0.1"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: --data folder:") for line in lines] == [True, True]
    assert "(1 .heic)" in lines[0]
    assert "10 .gif are read as well" in lines[1]


@pytest.mark.parametrize("kind", ["folder", "images"])
@pytest.mark.parametrize("name", ["pipe.png", "nowhere.jpg"])
def test_pipes_and_broken_links_are_refused(root, name, kind):
    path = root / "test" / "ant" / name
    if name == "pipe.png":
        os.mkfifo(path)
    else:
        path.symlink_to(root / "gone.jpg")
    with pytest.raises(SlimrankError, match=f"{name} is no regular file"):
        open_data(f"{kind}:{root}", RGB, validation="test:0.1")


def test_links_that_go_in_a_circle_are_refused(root):
    (root / "test" / "ant" / "again").symlink_to(root / "test")
    with pytest.raises(SlimrankError, match="again is a link to a folder that it lies in"):
        open_data(f"folder:{root}", RGB, validation="test:0.1")


def test_links_to_folders_and_files_are_followed(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture(elsewhere / "more" / "1.png")
    (root / "test" / "ant" / "more").symlink_to(elsewhere / "more")
    (root / "test" / "ant" / "one.png").symlink_to(elsewhere / "more" / "1.png")
    assert len(opened(root)[1]) == len(ImageFolder(root / "test"))


def test_a_class_of_other_files_alone(root):
    (root / "test" / "cow").mkdir()
    (root / "test" / "cow" / "1.heic").write_bytes(b"?")
    with pytest.raises(SlimrankError, match=r"no pictures in the folder cow \(1 \.heic\)"):
        open_data(f"folder:{root}", RGB, validation="test:0.1")


def test_a_class_folder_whose_name_is_not_utf8_is_said_at_once(tmp_path):
    for split in ("train", "test"):
        for name in (b"ant", b"caf\xe9"):
            folder = os.path.join(os.fsencode(tmp_path), split.encode(), name)
            os.makedirs(folder)
            Image.new("L", (8, 8)).save(os.fsdecode(os.path.join(folder, b"0.png")))
    with pytest.raises(SlimrankError, match=r"class folder caf\\udce9 is not UTF-8; rename it"):
        open_data(f"folder:{tmp_path}", Preprocessing.default(1, 8))
