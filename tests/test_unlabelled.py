"""images:DIR, pictures without classes: their splits, no label is ever counted, and `compress` goes as far as it can."""

import contextlib
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from slimrank.cli import main
from slimrank.compress.head.crops import with_crops
from slimrank.compress.head.options import HeadOptions
from slimrank.compress.head.specialize import specialize
from slimrank.compress.network.checkpoint import load
from slimrank.compress.rankers import LABEL_FREE, RANKERS, Ranker
from slimrank.compress.stages.measure import accuracy_on, agreement, decided
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Recipe
from slimrank.errors import SlimrankError
from slimrank.evaluate.accuracy import decisions, predictor
from slimrank.evaluate.data import DataSpec, Images, Preprocessing, open_data

RGB = Preprocessing.default(3, 8)
SPLITS = ("train", "validation", "test")
PICTURES = 100


def write(root, names):
    """Grey pictures with a value each, so that pixels tell them apart; returns `root`."""
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), value).save(path)
    return root


def values(images):
    return images.pixels(torch.arange(len(images)))[:, 0, 0, 0].tolist()


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return write(tmp_path_factory.mktemp("flat"), [f"{i:03}.png" for i in range(PICTURES)])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The first 250 of scikit-learn's digits as PNG, in three folders that mean nothing."""
    root = tmp_path_factory.mktemp("digits") / "pictures"
    for i, picture in enumerate((load_digits().images[:250] * (255 / 16)).round().astype(np.uint8)):
        path = root / f"camera{i % 3}" / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return root


# -- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("validation", ["train:0.1", "test:0.3"])
@pytest.mark.parametrize("count", [10, 11, 57])
def test_splits_are_disjoint_and_complete(tmp_path, count, validation, seed):
    root = write(tmp_path, [f"{i}.png" for i in range(count)])
    data = open_data(f"images:{root}", RGB, validation=validation, seed=seed)
    parts = [values(data.split(name)) for name in SPLITS]
    assert sorted(value for part in parts for value in part) == list(range(count))
    held_back = parts[2] if validation.startswith("train") else parts[1] + parts[2]
    assert len(held_back) == count // 5


def test_the_seed_moves_validation_and_never_test(flat):
    first, second = (open_data(f"images:{flat}", RGB, seed=seed) for seed in (0, 5))
    assert values(first.test) == values(second.test)
    assert values(first.validation) != values(second.validation)


@pytest.mark.parametrize("split", SPLITS)
def test_nested_folders_are_one_flat_folder(flat, tmp_path, split):
    names = [f"{i // 40}/{'deep/er/' if i < 50 else 'x/'}{i:03}.png" for i in range(PICTURES)]
    nested = open_data(f"images:{write(tmp_path, names)}", RGB)
    assert values(nested.split(split)) == values(open_data(f"images:{flat}", RGB).split(split))


def test_case_is_free_and_what_is_hidden_or_no_picture_is_left_out(flat, tmp_path):
    names = [f"{i:03}.{('png', 'PNG', 'bmp', 'Tiff')[i % 4]}" for i in range(PICTURES)]
    root = write(tmp_path, [*names, ".hidden.png", ".thumbnails/7.png", "sub/._8.png"])
    (root / "notes.txt").write_text("no picture")
    (root / "folder.png").mkdir()
    data, plain = (open_data(f"images:{place}", RGB) for place in (root, flat))
    assert [values(data.split(name)) for name in SPLITS] == [values(plain.split(name)) for name in SPLITS]


def test_limit_holds_for_each_split(flat):
    data = open_data(f"images:{flat}", RGB, limit=5)
    assert [len(data.split(name)) for name in SPLITS] == [5, 5, 5]


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_pictures_are_said(tmp_path, count):
    root = write(tmp_path, [f"{i}.png" for i in range(count)])
    with pytest.raises(SlimrankError, match=f"holds {count} pictures, too few for train, validation and test"):
        open_data(f"images:{root}", RGB)


def test_a_validation_share_that_leaves_a_split_empty_is_said(tmp_path):
    root = write(tmp_path, [f"{i}.png" for i in range(6)])
    with pytest.raises(SlimrankError, match=r"`validation` test:0\.2: add pictures"):
        open_data(f"images:{root}", RGB, validation="test:0.2")


# -- no label is ever counted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_there_are_no_classes_and_no_labels(flat, split):
    data = open_data(f"images:{flat}", RGB)
    assert data.classes is None
    assert set(data.split(split).labels.tolist()) == {-1}
    assert not DataSpec(f"images:{flat}").labelled


def test_a_network_keeps_its_own_classes(trained, digits):
    given = load(trained)
    assert given.with_classes(open_data(f"images:{digits}", given.preprocessing)) is given


def test_accuracy_and_training_refuse_images_without_labels(trained, digits):
    given = load(trained)
    images = open_data(f"images:{digits}", given.preprocessing).split("train")
    with pytest.raises(SlimrankError, match="accuracy needs labels"):
        accuracy_on(given.model, images, 10)
    with pytest.raises(SlimrankError, match=r"training needs labels, .* add `teacher`"):
        train(given.model, images, None, Recipe(epochs=1))


def test_without_labels_the_teacher_is_all_that_is_learnt(trained):
    """The same steps as on labelled images of which the loss takes nothing."""
    teacher, student = load(trained), load(trained).model
    with torch.no_grad():
        student.get_submodule("conv1").weight.mul_(0.5)
    labelled = open_data("digits", teacher.preprocessing, limit=120).split("train")
    bare = labelled.subset(torch.arange(len(labelled)))
    bare.labels = torch.full_like(bare.labels, -1)
    recipe = Recipe(2, 0.01, teacher_share=1.0, precision="fp32")
    expected, _ = train(student, labelled, None, recipe, teacher=teacher.model)
    found, _ = train(student, bare, None, replace(recipe, teacher_share=0.5), teacher=teacher.model)
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)


def test_finetuning_without_labels_tells_agreement_with_the_teacher(trained, digits, tmp_path, capsys):
    half, tuned = tmp_path / "half.safetensors", tmp_path / "tuned.safetensors"
    data = ["--data", f"images:{digits}"]
    assert main(["prune", str(trained), *data, "--macs", "0.3", "--no-reconstruct", "-o", str(half)]) == 0
    words = ["finetune", str(half), *data, "--epochs", "2", "--lr", "0.01", "--json", "-o", str(tuned)]
    assert main(words) == 1
    assert "add --teacher, whose decisions are learnt, or data with classes" in capsys.readouterr().err
    assert main([*words, "--teacher", str(trained)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["top1_before"], found["top1_after"]) == (None, None)
    assert found["training"]["validation_top1"] is found["training"]["start_top1"] is None
    reached = [found["training"]["start_agreement"], *found["training"]["validation_agreement"]]
    assert found["training"]["best_epoch"] == reached.index(max(reached))
    dense, after = load(trained), load(tuned)
    images = open_data(f"images:{digits}", dense.preprocessing)
    expected = agreement(decided(dense.model, images), decided(after.model, images))
    assert found["agreement_after"] == pytest.approx(expected)
    assert "agreement with the teacher" in found["says"]


@pytest.mark.parametrize("name", RANKERS)
def test_a_ranker_runs_without_labels_or_says_which_do(name, trained, digits, tmp_path, capsys):
    record = RANKERS[name]
    status = main(["rank", str(trained), "--ranker", name, "--data", f"images:{digits}", "-o", str(tmp_path / "s.json")])
    err = capsys.readouterr().err
    if record.split is not None and record.labels:
        assert status == 1
        assert f"take one of {', '.join(LABEL_FREE)}" in err
        assert name not in LABEL_FREE
    else:
        assert status == 0 or "no BatchNorm follows" in err  # of bn-scale: this network has none


@pytest.mark.parametrize(
    ("split", "labels", "images", "labelled", "match"),
    [
        (None, True, False, False, None),
        (None, True, True, False, None),
        ("train", False, True, False, None),
        ("train", True, True, True, None),
        ("train", False, False, False, "needs images"),
        ("train", True, False, True, "needs images"),
        ("train", True, True, False, "needs labels"),
    ],
)
def test_what_a_ranker_needs(split, labels, images, labelled, match):
    record = Ranker(name="own", function="own:rank", split=split, labels=labels)
    if match is None:
        record.check_data(images, labelled)
    else:
        with pytest.raises(SlimrankError, match=match):
            record.check_data(images, labelled)


# -- agreement, and the whole line -----------------------------------------------------------------------------------


def test_agreement_is_the_share_of_equal_decisions(trained, digits):
    given = load(trained)
    data = open_data(f"images:{digits}", given.preprocessing)
    other = torch.nn.Sequential(given.model, torch.nn.Linear(10, 10))
    x = torch.cat([x for x, _ in data.split("test").batches()])
    with torch.inference_mode():
        expected = (given.model(x).argmax(1) == other(x).argmax(1)).float().mean().item()
    dense, moved = decided(given.model, data), decided(other, data)
    assert agreement(dense, moved) == pytest.approx(expected, abs=1e-6)
    assert agreement(dense, dense) == 1.0
    assert (dense.top1, moved.top1) == (None, None)


def test_decisions_give_the_accuracy_that_evaluate_gives(trained):
    given = load(trained)
    data = open_data("digits", given.preprocessing)
    assert decided(given.model, data).top1 == accuracy_on(given.model, data.split("test"), 10).top1


@pytest.fixture(scope="module")
def compressed(trained, digits, tmp_path_factory):
    """`compress` on unlabelled digits: its report, what it printed, its folder."""
    out = tmp_path_factory.mktemp("compressed") / "out"
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        words = ["compress", str(trained), "--data", f"images:{digits}", "--batch", "1", "-o", str(out)]
        assert main(words) == 0, said.getvalue()
    return json.loads((out / "report.json").read_text()), printed.getvalue(), said.getvalue(), out


def test_the_report_has_agreement_and_no_accuracy(compressed):
    report, *_ = compressed
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert report["baseline"]["agreement"] == 1.0
    assert report["test_images"] == stages["export"]["parity"]["images"] == 50
    assert stages["export"]["parity"]["on"] == "test images"
    assert report["compressed"]["agreement"] == stages["prune"]["agreement"] == stages["export"]["agreement"]
    assert 0.3 < report["compressed"]["agreement"] <= 1
    assert {side["top1"] for side in (report["baseline"], report["compressed"], stages["prune"])} == {None}
    assert report["compressed"]["macs"] <= 0.5 * report["baseline"]["macs"]


def test_every_stage_says_what_it_did(compressed):
    report, printed, said, _ = compressed
    share = f"{report['compressed']['agreement']:.1%}"
    assert f"agrees with the dense network on {share} of 50 images" in said
    assert re.search(r"finetune .*left out: no labels", said)
    assert re.search(r"specialize .* of its decisions on validation; dense classifier kept", said)
    assert f"agrees with the dense network on {share} of 50 test images; MACs" in printed
    assert "warning" not in said  # what validation images were seen in training moves no figure here


def test_the_page_shows_agreement(compressed):
    report, _, _, out = compressed
    html = (out / "report.html").read_text()
    assert f"{report['compressed']['agreement']:.1%}</b>" in html
    assert "have no labels" in html
    assert "not measured" in html
    assert "test:0.2" not in html


def test_the_result_keeps_the_class_names_of_the_network(compressed, trained):
    *_, out = compressed
    slim = load(out / "slim.safetensors")
    assert slim.classes == load(trained).classes
    assert main(["evaluate", str(out / "model.onnx"), "--data", "digits"]) == 0


@pytest.mark.parametrize("recover", ["0", "1"])
def test_pruning_in_steps(trained, digits, tmp_path, capsys, recover):
    words = [
        "prune",
        str(trained),
        "--data",
        f"images:{digits}",
        "--macs",
        "0.6",
        "--steps",
        "2",
        "--recover",
        recover,
        "--json",
    ]
    assert main([*words, "-o", str(tmp_path / "out.safetensors")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top1_before"] is found["top1_after"] is None
    assert 0 < found["agreement"] <= 1
    assert "agrees with the dense network on" in found["table"]


def test_epochs_that_are_asked_for_learn_what_the_given_network_decides(trained, digits, tmp_path):
    words = ["compress", str(trained), "--data", f"images:{digits}", "--batch", "1", "--epochs", "1", "--lr", "0.01"]
    assert main([*words, "-o", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    stage = next(stage for stage in report["stages"] if stage["name"] == "finetune")
    assert report["options"]["epochs"] == stage["training"]["epochs"] == 1
    assert stage["top1"] is None
    assert len(stage["training"]["validation_agreement"]) == 1
    assert f"agrees with the dense network on {report['compressed']['agreement']:.1%}" in stage["says"]


def test_with_labels_agreement_stands_beside_top1(trained, tmp_path, capsys):
    words = ["prune", str(trained), "--data", "digits", "--macs", "0.6", "--json", "-o", str(tmp_path / "out.safetensors")]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["top1_after"] is not None
    assert 0 < found["agreement"] <= 1
    assert "agrees with" not in found["table"]


def test_sensitivity_draws_the_error_without_labels(trained, digits, tmp_path):
    out = tmp_path / "s.json"
    assert main(["sensitivity", str(trained), "--error", "--data", f"images:{digits}", "-o", str(out)]) == 0
    scores = json.loads(out.read_text())
    assert set(scores["error"]) == {"conv1", "conv2", "fc1", "fc2"}
    assert scores["ranker"] == "reconstruct"
    assert "error" in out.with_suffix(".svg").read_text()


# -- a class-specific head -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads(trained, digits):
    """What `specialize` says of one head, on pictures without labels and on the same with the dense network's decisions."""
    checkpoint = load(trained)
    data = open_data(f"images:{digits}", checkpoint.preprocessing)
    options = HeadOptions(layout="dense", select="histogram", k2=8)
    unlabelled = specialize(checkpoint, data, options)
    named = {}
    for split in SPLITS:
        images = getattr(data, split)
        labels = decisions(predictor(checkpoint.model), images.batches())
        named[split] = Images(images.pictures, labels, images.preprocessing)
    return unlabelled, specialize(checkpoint, replace(data, classes=[str(i) for i in range(10)], **named), options)


def test_without_labels_the_dense_decisions_are_the_classes(heads):
    unlabelled, labelled = (special.result for special in heads)
    assert unlabelled.indices == labelled.indices
    assert unlabelled.agreement == labelled.agreement == labelled.top1_head
    assert unlabelled.training.top1_after == labelled.training.top1_after
    weights = [special.checkpoint.model.fc3.weight for special in heads]
    torch.testing.assert_close(*weights)


def test_without_labels_no_accuracy_is_told(heads):
    result = heads[0].result
    assert (result.top1_dense, result.top1_head, result.top1_dense_trained) == (None, None, None)
    assert result.ratio == result.agreement
    assert result.to_dict()["top1_head"] is None
    assert "which have no labels" in str(result)


@pytest.mark.parametrize("count", [0, 3])
def test_crops_follow_their_images(count):
    images = torch.randn(4, 3, 12, 8) + 10 * torch.arange(4.0).view(-1, 1, 1, 1)
    batches = list(with_crops([(images, torch.arange(4))], count, seed=1))
    again = list(with_crops([(images, torch.arange(4))], count, seed=1))
    assert len(batches) == 1 + count
    for (crops, labels), (same, _) in zip(batches, again, strict=True):
        assert torch.equal(crops, same)
        assert crops.shape == images.shape
        assert torch.equal(labels, torch.arange(4))
        assert torch.equal((crops.mean((1, 2, 3)) / 10).round(), torch.arange(4.0))


def test_no_crop_is_like_another():
    images = torch.randn(2, 1, 16, 16)
    crops = torch.cat([x for x, _ in with_crops([(images, torch.zeros(2))], 4, seed=0)])
    distances = torch.cdist(crops.flatten(1), crops.flatten(1)) + torch.eye(10) * 99
    assert float(distances.min()) > 1
