"""A final layer that comes as a .npy matrix with its queries: every layout is fitted, and its agreement is its own."""

import json

import numpy as np
import pytest
import torch

from slimrank.cli import main
from slimrank.compress.head.bench import bench_final_layer
from slimrank.compress.head.best import Best, frequent
from slimrank.compress.head.matrix import Matrix
from slimrank.compress.head.options import FINAL_LAYERS, FinalLayerOptions
from slimrank.evaluate.runner import Runner
from slimrank.evaluate.timing import Timing
from slimrank.export.quantize import quantized_int4
from slimrank.export.to_onnx import export


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """63 classes of 32 features in nine bunches, and 400 queries near them."""
    folder, rng = tmp_path_factory.mktemp("matrix"), np.random.default_rng(0)
    weights = np.repeat(rng.standard_normal((9, 32)), 7, 0) + 0.3 * rng.standard_normal((63, 32))
    queries = weights[rng.integers(0, 63, 400)] + 0.3 * rng.standard_normal((400, 32))
    np.save(folder / "w.npy", weights)
    np.save(folder / "q.npy", queries.astype(np.float16))
    np.save(folder / "wide.npy", queries[:, :30])
    np.save(folder / "flat.npy", queries[0])
    np.save(folder / "nan.npy", queries * np.nan)
    np.save(folder / "words.npy", np.array([["a"] * 32] * 8))
    np.save(folder / "one.npy", queries[:1])
    (folder / "text.npy").write_text("no array")
    return folder


@pytest.fixture(scope="module")
def bench(files):
    options = FinalLayerOptions(
        weights=files / "w.npy", queries=files / "q.npy", k=16, groups=9, tile=4, rescore=5, probe=3, layout=FINAL_LAYERS,
        timing=Timing(batch=(1,)),
    )  # fmt: skip
    return bench_final_layer(None, options, seconds=0.001)


def test_every_layout_has_an_agreement(bench):
    agreement = {row.layout: row.agreement for row in bench.results}
    assert agreement["linear"] == 1.0
    assert set(FINAL_LAYERS) <= agreement.keys()
    assert all(0.3 < same <= 1 for same in agreement.values())
    assert agreement["int8"] > 0.95
    assert agreement["int4"] > 0.6
    for layout in ("svd", "tiled", "two-level"):
        assert agreement[f"{layout}+rescore"] >= agreement[layout]
    assert agreement["two-level+best"] == agreement["two-level"]
    assert f"decides as the dense layer on {agreement['svd']:.2%}" in str(bench)
    assert bench.to_dict()["classes"] == 63


def test_heads_are_judged_on_queries_that_they_were_not_fitted_to(files):
    matrix = Matrix.read(files / "w.npy", files / "q.npy", seed=3)
    assert len(matrix.fit) == len(matrix.judge) == 200
    both = torch.cat([matrix.fit, matrix.judge])
    assert len(both.unique(dim=0)) == 400
    assert torch.equal(both.sort(0).values, torch.from_numpy(np.load(files / "q.npy")).float().sort(0).values)


def test_the_best_classes_are_those_of_all_logits(files, tmp_path):
    matrix = Matrix.read(files / "w.npy", files / "q.npy")
    head = matrix.heads(32, 9, 4, 4, 9, 9)["two-level"]()  # every group is computed, every feature read
    best = Best(head, 4)
    logits, classes = best(matrix.judge)
    wanted = head(matrix.judge).topk(4, 1)
    torch.testing.assert_close(logits, wanted.values)
    assert torch.equal(classes, wanted.indices)
    path = export(best, matrix.judge[:1], tmp_path / "best.onnx", {}, outputs=best.outputs)
    session = Runner(path).session
    for rows in (1, 7):
        found = session.run(None, {"images": matrix.judge[:rows].numpy()})
        np.testing.assert_allclose(found[0], logits[:rows].detach().numpy(), rtol=1e-4, atol=1e-4)
        assert np.array_equal(found[1], classes[:rows].numpy())


@pytest.mark.parametrize("groups", [7, 8])  # of nine classes, and of seven and eight
def test_a_shortlist_is_computed_whatever_is_probed(files, groups):
    matrix = Matrix.read(files / "w.npy", files / "q.npy")
    head = matrix.heads(32, groups, 4, 4, 1, groups)["two-level"]()
    wanted = (matrix.judge @ matrix.weight.T).topk(4, 1).indices
    right = {}
    for count in (0, 20, 63):
        best = matrix.best(head, 4, count)
        logits, classes = best(matrix.judge)
        right[count] = float((classes[:, 0] == wanted[:, 0]).double().mean())
        assert bool((logits[:, :-1] >= logits[:, 1:]).all())
        assert all(len(row.unique()) == 4 for row in classes)
        assert best.macs(()) == head.macs(()) + 32 * count
    assert right[0] < right[20] <= right[63] == 1.0
    assert torch.equal(classes, wanted)


def test_the_shortlist_is_what_queries_come_nearest_to():
    weight = torch.eye(6)
    queries = torch.tensor([[9.0, 1, 0, 0, 0, 0], [9, 0, 8, 0, 0, 0], [0, 0, 8, 9, 0, 0]])
    assert frequent(weight, torch.zeros(6), queries, 2).tolist() == [0, 3]
    assert frequent(weight, torch.zeros(6), queries, 3).tolist() == [0, 2, 3]
    assert frequent(weight, torch.zeros(6), queries, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("features", [96, 50])
def test_int4_rounds_a_layer(tmp_path, features):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(features, 40), torch.randn(20, features)
    path = export(linear, x[:1], tmp_path / "l.onnx", {})
    small = quantized_int4(path, tmp_path / "q.onnx")
    off = Runner(small)(x) - linear(x).detach()
    assert 0 < float(off.std() / linear(x).detach().std()) < 0.2
    assert small.stat().st_size < path.stat().st_size


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--weights w.npy --queries wide.npy", "has 30 features, the layer in --weights"),
        ("--weights w.npy", "go together"),
        ("--queries q.npy", "go together"),
        ("--weights flat.npy --queries q.npy", "must hold one matrix"),
        ("--weights words.npy --queries q.npy", "must hold one matrix"),
        ("--weights w.npy --queries nan.npy", "not finite"),
        ("--weights w.npy --queries one.npy", "at least 4"),
        ("--weights w.npy --queries q.npy --shortlist 8", "for --layout two-level+best"),
        ("--weights w.npy --queries q.npy --layout two-level+best --shortlist 64", "must lie in 0..63"),
        ("--weights text.npy --queries q.npy", "is no .npy file"),
        ("--weights none.npy --queries q.npy", "is no .npy file"),
    ],
)
def test_matrices_that_do_not_fit_are_one_line(files, capsys, monkeypatch, words, says):
    monkeypatch.chdir(files)
    assert main(["bench-head", *words.split()]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_the_verb_takes_them(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    words = "bench-head --weights w.npy --queries q.npy --layout int8 --batch 1 --json"
    assert main(words.split()) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["layout"] for row in rows] == ["linear", "int8"]
    assert rows[0]["agreement"] == 1.0
