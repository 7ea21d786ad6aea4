"""The command line: keys, exit codes, one-line errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from slimrank.cli import main
from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import load, save
from slimrank.compress.stages.training import fresh

from .toy_models import Branching

KEYS = {
    "train": {"top1", "epochs"},
    "inspect": {"macs", "params", "groups"},
    "evaluate": {"top1", "top5", "n"},
    "rank": {"ranker", "scores", "estimated", "evaluations", "seconds"},
    "compare-ranks": {"layers"},
    "prune": {"macs_before", "macs_after", "params_before", "params_after", "top1_before", "top1_after"},
    "sensitivity": {"sensitivity", "scores"},
    "finetune": {"top1_before", "top1_after"},
    "specialize": {
        "top1_dense", "top1_head", "ratio", "agreement", "head_macs_before", "head_macs_after", "indices",
    },
    "export": {"path", "max_abs_diff", "agreement", "bytes"},
    "bench": {"results", "speedups"},
    "bench-head": {"results"},
    "explain": {"layers", "notes"},
    "compress": {"baseline", "compressed", "stages"},
}  # fmt: skip
SIDE = {"top1", "macs", "flops", "params", "bytes", "latency"}


def run(capsys, *words: object) -> dict:
    """A verb in this process; its JSON, which is all that stands on stdout."""
    status = main([str(w) for w in words] + ["--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    found = json.loads(out)
    assert KEYS[str(words[0])] <= set(found)
    return found


def fails(capsys, *words: object, status: int = 1) -> str:
    """A verb that must fail: the one line that it prints."""
    try:
        code = main([str(w) for w in words])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line and not line.startswith("warning: ")]
    assert code == status, (code, err)
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("error: "), err
    assert "this is a defect" not in err
    return lines[0]


def test_every_verb_in_turn(capsys, tmp_path, trained):
    digits = ("--data", "digits")
    seen = run(capsys, "inspect", trained)
    assert seen["groups"][0]["layer"] == "conv1"
    assert seen["groups"][-1]["prunable"] is False
    assert seen["groups"][-1]["why"]
    assert seen["macs"] == 498_750
    before = run(capsys, "evaluate", trained, *digits)
    assert before["n"] == 359
    assert before["top1"] > 0.8
    ranked = run(capsys, "rank", trained, "--ranker", "influential", *digits, "-o", tmp_path / "s.json")
    assert (tmp_path / "s.svg").read_text().startswith("<svg")
    assert len(ranked["scores"]["conv2"]) == 20
    one = run(capsys, "rank", trained, "--ranker", "l1", "--layer", "fc1", "-o", tmp_path / "one.json")
    assert list(one["scores"]) == ["fc1"]
    car = run(capsys, "rank", trained, "--ranker", "car", *digits, "--layer", "fc2", "-o", tmp_path / "car.json")
    assert len(car["car_by_class"]["fc2"][0]) == 10
    shapley = ("--ranker", "shapley", "--layer", "fc2", "--estimator", "permutation", "--samples", 5, "--tolerance", 1e-9)
    worth = run(capsys, "rank", trained, *shapley, *digits, "-o", tmp_path / "shapley.json")
    assert sum(worth["scores"]["fc2"]) == pytest.approx(worth["value_full"]["fc2"] - worth["value_empty"]["fc2"])
    assert worth["evaluations"] == 2 + 5 * 2 * 24
    assert "fc2: --tolerance 1e-09 not reached" in worth["notes"][1]
    run(capsys, "rank", trained, "--ranker", "switch", *digits, "--layer", "conv1", "-o", tmp_path / "switch.json")
    pair = (tmp_path / "car.json", tmp_path / "shapley.json")
    same = run(capsys, "compare-ranks", *pair, "-o", tmp_path / "pair.svg")
    assert set(same["layers"]["fc2"]) >= {"spearman", "top5"}
    assert (tmp_path / "pair.svg").read_text().startswith("<svg")
    pruned = run(
        capsys, "prune", trained, "--scores", tmp_path / "s.json", "--macs", 0.5, *digits, "-o", tmp_path / "p.safetensors"
    )
    assert 0.49 <= pruned["macs_after"] / pruned["macs_before"] <= 0.5
    assert pruned["top1_before"] == before["top1"]
    tuned = run(capsys, "finetune", tmp_path / "p.safetensors", *digits, "--epochs", 1, "-o", tmp_path / "t.safetensors")
    assert tuned["top1_before"] == pruned["top1_after"]
    assert tuned["validation_seen_in_training"] is False
    taught = ("--teacher", trained, "-o", tmp_path / "d.safetensors")
    run(capsys, "finetune", tmp_path / "p.safetensors", *digits, "--epochs", 1, *taught)
    head = run(
        capsys,
        "specialize",
        tmp_path / "t.safetensors",
        *digits,
        "--select",
        "histogram",
        "--k1",
        6,
        "--k2",
        6,
        "-o",
        tmp_path / "h.safetensors",
    )
    assert head["top1_dense"] == tuned["top1_after"]
    assert len(head["indices"]) == 10
    assert len(head["indices"][0]) == 6
    exported = run(capsys, "export", tmp_path / "h.safetensors", *digits, "-o", tmp_path / "h.onnx")
    assert exported["agreement"] == 1.0
    onnx = run(capsys, "evaluate", tmp_path / "h.onnx", *digits)
    assert onnx["top1"] == head["top1_head"]
    run(capsys, "export", trained, "-o", tmp_path / "dense.onnx")
    timed = run(capsys, "bench", tmp_path / "dense.onnx", tmp_path / "h.onnx", "--batch", "1,4", "--seconds", 0.05)
    assert {"model", "provider", "batch", "threads", "median_ms", "p10_ms", "p90_ms"} <= set(timed["results"][0])
    rows = run(capsys, "bench-head", tmp_path / "h.safetensors", "--batch", "1", "--layout", "gather")["results"]
    assert {"layout", "provider", "batch", "median_us", "speedup"} <= set(rows[0])


def test_budgets_schedules_and_sensitivity(capsys, tmp_path, trained):
    """What is new in each verb, in turn; the network is cut again and again, from its own slim checkpoints."""
    digits, first, second = ("--data", "digits"), tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    told = run(capsys, "sensitivity", trained, *digits, "--limit", 100, "-o", tmp_path / "s.json")
    assert set(told["sensitivity"]) == {"conv1", "conv2", "fc1", "fc2"}
    assert (tmp_path / "s.svg").read_text().startswith("<svg")
    words = ("--scores", tmp_path / "s.json", "--scope", "global", "--params", 0.5, "--protect", "conv1")
    once = run(capsys, "prune", trained, *words, *digits, "-o", first)
    assert 0.49 <= once["params_after"] / once["params_before"] <= 0.5
    assert "conv1" not in once["widths"]
    twice = run(capsys, "prune", first, "--ratio", 0.3, *digits, "-o", second)  # goes on from a pruned checkpoint
    assert twice["params_before"] == once["params_after"] > twice["params_after"]
    trials = run(
        capsys, "prune", trained, "--max-drop", 0.2, "--epochs", 1, "--lr", 0.05, *digits, "-o", tmp_path / "3.safetensors"
    )
    best = min(share for share, top1 in trials["trials"] if top1 >= 0.5)
    assert trials["budget"]["macs"] >= best
    steps = ("--steps", 2, "--recover", 1, "--epochs", 1, "--distill", "--lr", 0.05, "--macs", 0.4, "--batch", 1)
    report = run(capsys, "compress", trained, *digits, *steps, "-o", tmp_path / "c")
    assert report["compressed"]["macs"] <= 0.4 * report["baseline"]["macs"]
    stage = next(s for s in report["stages"] if s["name"] == "prune")
    assert all(len(stage["keep"][name]) == after for name, (_, after) in stage["widths"].items())
    numbers = [(max(kept), len(kept)) for kept in stage["keep"].values()]
    assert any(highest >= n for highest, n in numbers)  # numbers of the input checkpoint's filters
    seen = run(capsys, "inspect", trained, "--time", "--batch", 1)
    assert set(seen["layer_ms"]["1"]) == {"conv1", "conv2", "fc1", "fc2", "fc3"}


def test_control_flow_and_several_inputs_get_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    torch.save(Branching().state_dict(), tmp_path / "odd.pt")
    for words, match in (
        (("export", tmp_path / "odd.pt", "--model", "toy_models:branching", "-o", tmp_path / "o.onnx"), "if x.mean() > 0.1"),
        (("inspect", tmp_path / "odd.pt", "--model", "toy_models:two_inputs"), "more than one tensor"),
    ):
        assert match in fails(capsys, *words, "--size", 16)


def test_compress_with_and_without_data(capsys, tmp_path, trained):
    small = ("--batch", "1", "--epochs", 1)
    report = run(capsys, "compress", trained, "--data", "digits", *small, "--macs", 0.6, "--rivals", "-o", tmp_path / "a")
    assert set(report["compressed"]) >= SIDE
    assert set(report["baseline"]) >= SIDE
    assert report["compressed"]["flops"] == 2 * report["compressed"]["macs"]
    assert report["compressed"]["macs"] <= 0.6 * report["baseline"]["macs"]
    assert report["validation_seen_in_training"] is False
    on_disk = {p.name for p in (tmp_path / "a").iterdir()}
    assert {"slim.safetensors", "model.onnx", "report.json", "report.html"} <= on_disk
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == report
    page = (tmp_path / "a" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creative", "")
    assert "<script" not in page
    assert page.count("<svg") == 2
    onnx = run(capsys, "evaluate", tmp_path / "a" / "model.onnx", "--data", "digits")
    assert onnx["top1"] == report["compressed"]["top1"]
    bare = run(capsys, "compress", trained, *small, "-o", tmp_path / "b")
    assert bare["compressed"]["top1"] is None
    assert next(s for s in bare["stages"] if s["name"] == "export")["parity"]["on"] == "random inputs"
    again = run(capsys, "compress", trained, *small, "-o", tmp_path / "b")
    assert again == bare
    line = fails(capsys, "compress", trained, *small, "--macs", 0.3, "-o", tmp_path / "b")
    assert "macs" in line
    other = tmp_path / "other.safetensors"
    save(fresh("lenet5", None, list("0123456789"), 1, None, 9), other)
    assert "another checkpoint" in fails(capsys, "compress", other, *small, "-o", tmp_path / "b")


def test_gathered_head_can_be_forced(capsys, tmp_path, trained):
    words = ("--data", "digits", "--epochs", 0, "--batch", 1, "--head", "gather", "--k2", 8, "-o", tmp_path / "g")
    report = run(capsys, "compress", trained, *words)
    stage = next(s for s in report["stages"] if s["name"] == "specialize")
    assert stage["head"] == "gather"
    assert max(i for row in stage["result"]["indices"] for i in row) < 25  # numbers of the input checkpoint's features
    assert "SubspaceLinear" in str(load(tmp_path / "g" / "slim.safetensors").model)


def test_heads_of_every_kind(capsys, tmp_path, trained):
    """Each choice, fit and layout once; what is reported is what the written network does."""
    digits = ("--data", "digits")
    for number, words in enumerate((
        ("--select", "histogram", "--fit", "truncate", "--k1", "coverage:0.9", "--k2", 6, "--layout", "gather",
         "--sweep", "3,6"),
        ("--select", "contribution", "--fit", "refit", "--k2", "auto", "--max-drop", 0.05, "--layout", "dense"),
        ("--layout", "tiled", "--groups", 3, "--tile", 1, "--k2", 8, "--rescore", "auto", "--agreement", 0.97),
        ("--layout", "tiled", "--adjacent", "--groups", 2, "--fit", "refit", "--rescore", 10, "--layer", "classifier.4"),
        ("--layout", "tiled", "--groups", 5, "--tile", 1, "--k2", 8, "--probe", "auto", "--agreement", 0.95),
        ("--layout", "int8", "--fit", "truncate"),
    )):  # fmt: skip
        out = tmp_path / f"{number}.safetensors"
        if "--layer" in words:
            words = (*words[:-1], run(capsys, "inspect", trained)["classifier"])
        found = run(capsys, "specialize", trained, *digits, *words, "-o", out)
        assert run(capsys, "evaluate", out, *digits)["top1"] == pytest.approx(found["top1_head"], abs=1e-9)
        if number == 0:
            assert len(found["sweep"]["top1"]) == 2
            assert out.with_suffix(".svg").exists()
            assert 1 <= found["k1"] <= 25
        elif number == 1:
            assert found["k2"] < 25
        elif number == 2:
            assert found["groups"] == 3
            assert found["top1_dense_trained"] is not None
            assert found["shortlist_recall"] > 0.9  # a class outside can still win, when the rescored ones fall below it
            assert found["agreement"] > 0.9
            again = run(capsys, "finetune", out, *digits, "--epochs", 1, "-o", tmp_path / "joint.safetensors")
            assert again["top1_before"] == pytest.approx(found["top1_head"], abs=1e-9)
            exported = run(capsys, "export", tmp_path / "joint.safetensors", *digits, "-o", tmp_path / "joint.onnx")
            assert exported["agreement"] == 1.0
        elif number == 3:
            assert found["agreement"] == 1.0
        elif number == 5:
            assert found["agreement"] > 0.97
            assert found["k2"] == found["features"]
        else:
            assert 0 < found["probe"] < 5
            assert found["probe_recall"] > 0.9
            exported = run(capsys, "export", out, *digits, "-o", tmp_path / "two.onnx")
            assert exported["agreement"] == 1.0


def test_a_pipe_that_closes_early_is_no_error(trained):
    words = [sys.executable, "-m", "slimrank.cli", "inspect", str(trained)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_bad_input(capsys, tmp_path, trained, monkeypatch):
    out = ("-o", tmp_path / "out.safetensors")
    digits = ("--data", "digits")
    car = ("--ranker", "car", *digits)
    shapley = ("--ranker", "shapley", *digits, "--layer", "fc1")
    onnx = tmp_path / "m.onnx"
    assert main(["export", str(trained), "-o", str(onnx)]) == 0
    capsys.readouterr()
    torch.save(zoo.build("lenet5").state_dict(), tmp_path / "foreign.pt")
    (tmp_path / "log.txt").write_text("baseline       4.0 s  40,551,040 MACs\nrank           0.0 s\n")
    cases = [
        (("inspect", tmp_path / "missing.pt"), "no checkpoint at"),
        (("inspect", tmp_path / "log.txt"), "no PyTorch checkpoint"),
        (("inspect", tmp_path / "foreign.pt", "--model", "lenet"), "lenet5"),
        (("inspect", tmp_path / "foreign.pt", "--model", "nowhere.at:all"), "cannot import"),
        (("evaluate", tmp_path / "foreign.pt", "--model", "lenet5", "--data", "digitz"), "digits"),
        (("evaluate", trained, "--data", f"folder:{tmp_path}/nothing"), "no such folder"),
        (("rank", trained, "--ranker", "shaply", "-o", tmp_path / "s.json"), "no ranker"),
        (("rank", trained, "--ranker", "influential", "-o", tmp_path / "s.json"), "needs images"),
        (("rank", trained, "--ranker", "l1", "--layer", "conv9", "-o", tmp_path / "s.json"), "near ones: conv2, conv1"),
        (("rank", trained, "--ranker", "l1", "--layer", "fc3", "-o", tmp_path / "s.json"), "cannot be pruned"),
        (("rank", trained, *car, "--layer", "conv9", "-o", tmp_path / "s.json"), "near ones: conv2, conv1"),
        (("rank", trained, *car, "--greedy", "--remove", 0, "-o", tmp_path / "s.json"), "at least 1"),
        (("rank", trained, *car, "--limit", 1, "-o", tmp_path / "s.json"), "all images (1) are of class"),
        (("rank", trained, *shapley, "--estimator", "exact", "-o", tmp_path / "s.json"), "100 filters has 1.3e+30"),
        (("rank", trained, *shapley, "--estimator", "best", "-o", tmp_path / "s.json"), "no estimator 'best'"),
        (("rank", trained, *shapley, "--tolerance", "nan", "-o", tmp_path / "s.json"), "between 0 and 1"),
        (("rank", trained, "--ranker", "switch", *digits, "--lr", 100, "-o", tmp_path / "s.json"), "between 0 and 10"),
        (("rank", trained, *car, "--memory", -5, "-o", tmp_path / "s.json"), "0 bytes or more"),
        (("rank", trained, "--ranker", "influential", *digits, "--k1", 0, "-o", tmp_path / "s.json"), "at least 1"),
        (("rank", trained, "--ranker", "l1", "--estimator", "exact", "-o", tmp_path / "s.json"), "takes no --estimator"),
        (("rank", trained, *car, "--remove", 3, "-o", tmp_path / "s.json"), "only with --greedy"),
        (("rank", trained, *shapley, "--estimator", "truncated", "--samples", 3, "-o", tmp_path / "s.json"), "leave them out"),
        (("rank", trained, *shapley, "--coalition-size", 3, "-o", tmp_path / "s.json"), "--estimator truncated"),
        (("compare-ranks", tmp_path / "no.json", tmp_path / "no.json"), "no.json"),
        (("rank", trained, "--ranker", "bn-scale", "-o", tmp_path / "s.json"), "no BatchNorm follows"),
        (("rank", trained, "--ranker", "l1", "--k1", 3, "-o", tmp_path / "s.json"), "takes no --k1"),
        (("prune", trained, "--ratio", 1.2, *out), "between 0 and 1"),
        (("prune", trained, *out), "one budget"),
        (("prune", trained, "--params", 0, *out), "between 0 and 1"),
        (("prune", trained, "--latency", 1.5, *out), "between 0 and 1"),
        (("prune", trained, "--macs", 0.5, "--protect", "conv9", *out), "near ones: conv2, conv1"),
        (("prune", trained, "--macs", 0.5, "--min-filters", 0, *out), "--min-filters"),
        (("prune", trained, "--macs", 0.05, "--protect", "conv2", *out), "all of conv2, the least is"),
        (("prune", trained, "--macs", 0.5, "--protect", "fc3", *out), "no filter of it is ever cut"),
        (("prune", trained, "--max-drop", 0.1, *out), "need images"),
        (("prune", trained, "--max-drop", 2, *digits, *out), "one point"),
        (("prune", trained, "--macs", 0.5, "--epochs", 2, *out), "slimrank finetune"),
        (("prune", trained, "--macs", 0.5, "--timed", "--providers", "cuda", *out), "CPU provider only"),
        (("prune", trained, "--macs", 0.5, "--recalibrate", *out), "need images"),
        (("sensitivity", trained, *digits, "--ranker", "l2", "-o", tmp_path / "s.json"), "no ranker 'l2'"),
        (("compress", trained, *digits, "--steps", 0, "-o", tmp_path / "c"), "--steps"),
        (("compress", trained, "--steps", 2, "-o", tmp_path / "c"), "need images"),
        (("compress", trained, *digits, "--steps", 2, "--max-drop", 0.1, "-o", tmp_path / "c"), "one-shot"),
        (("finetune", trained, *digits, "--label-smoothing", 1, *out), "--label-smoothing"),
        (("finetune", trained, *digits, "--precision", "fp8", *out), "no precision"),
        (("prune", trained, "--macs", 0.001, *out), "out of reach"),
        (("prune", trained, "--macs", 0.5, "--scores", tmp_path / "none.json", *out), "cannot read"),
        (("specialize", trained, *digits, "--k2", 26, *out), "25 features"),
        (("specialize", trained, *digits, "--layout", "tile", *out), "no layout"),
        (("specialize", trained, *digits, "--select", "best", *out), "--select"),
        (("specialize", trained, *digits, "--fit", "magic", *out), "--fit"),
        (("specialize", trained, *digits, "--layer", "conv1", *out), "does not give the classes"),
        (("specialize", trained, *digits, "--rescore", 11, *out), "10 classes"),
        (("specialize", trained, *digits, "--layout", "tiled", "--tile", 4, *out), "25 features"),
        (("specialize", trained, *digits, "--layout", "gather", "--groups", 2, *out), "has none"),
        (("specialize", trained, *digits, "--rescore", "auto", "--agreement", 2, *out), "--agreement"),
        (("specialize", trained, *digits, "--agreement", 0.9, *out), "--rescore auto"),
        (("specialize", trained, *digits, "--layout", "tiled", "--groups", 4, "--probe", 5, *out), "4 groups"),
        (
            ("specialize", trained, *digits, "--layout", "tiled", "--groups", 5, "--probe", 1, "--rescore", 3, *out),
            "probe more",
        ),
        (("specialize", trained, *digits, "--layout", "gather", "--probe", 2, *out), "--probe"),
        (("specialize", trained, *digits, "--layout", "tiled", "--adjacent", "--probe", 2, *out), "--adjacent"),
        (("specialize", trained, *digits, "--probe", "auto", *out), "--layout tiled"),
        (("specialize", trained, *digits, "--layout", "int8", "--k2", 5, *out), "keeps every feature"),
        (("specialize", trained, *digits, "--probe", 50, *out), "3 groups"),
        (("bench-head", "--layout", "two-level", "--probe", 0), "at least 1"),
        (("bench-head", "--layout", "tiled", "--probe", 4), "two-level"),
        (("specialize", trained, *digits, "--layout", "gather", "--max-drop", 0.1, *out), "--k2 auto"),
        (("prune", trained, "--ratio", 0.5, "--batch", 4, *out), "--latency and --timed"),
        (("specialize", trained, *digits, "--select", "histogram", "--k1", "coverage:2", *out), "coverage"),
        (("specialize", trained, *digits, "--fit", "refit", "--sweep", "3,99", *out), "--sweep"),
        (("specialize", trained, *digits, "--layout", "tiled", "--tile", 5, *out), "power of two"),
        (("specialize", trained, *digits, "--layout", "tiled", "--select", "omp", *out), "co-clustering"),
        (("specialize", trained, *digits, "--k1", 5, *out), "counts votes"),
        (("specialize", trained, *digits, "--layout", "dense", "--rescore", 3, *out), "leave it out"),
        (("specialize", trained, *digits, "--layout", "gather", "--batch", "0", *out), "--batch"),
        (("specialize", trained, *digits, "--threads", "1,2", *out), "one thread count"),
        (("specialize", trained, *digits, "--groups", 11, *out), "10 classes"),
        (("bench-head", "--rescore", 0, "--layout", "tiled+rescore"), "--rescore"),
        (("bench-head", "--tile", 0), "power of two"),
        (("bench-head", "--groups", 1001), "1..1000"),
        (("finetune", trained, *digits, "--epochs", 0, *out), "--epochs"),
        (("finetune", trained, *digits, "--lr", 11, *out), "--lr"),
        (("train", *digits, *out), "--model NAME"),
        (("train", "--model", "resnet20-cifar", "--model-arg", "depht=3", *digits, *out), "--model-arg"),
        (("export", trained, "-o", "/proc/nowhere/m.onnx"), "cannot write"),
        (("export", trained, "-o", trained), "must end in .onnx"),
        (("prune", trained, "--macs", 0.5, "-o", tmp_path / "x.pt"), "must end in .safetensors"),
        (("prune", trained, "--macs", 0.5, "-o", trained), "is the file that is read"),
        (("rank", trained, "--ranker", "l1", "-o", tmp_path / "r.svg"), "must end in .json"),
        (("inspect", tmp_path / "foreign.pt", "--model", "lenet5", "--size", 100_000), "--size"),
        (("inspect", tmp_path / "foreign.pt", "--model", "lenet5", "--size", 0), "--size"),
        (("inspect", tmp_path / "foreign.pt", "--model", "vit_b_16"), "transformer"),
        (("inspect", onnx), "is an ONNX file"),
        (("inspect", tmp_path), "is a folder"),
        (("bench", trained), "is a checkpoint"),
        (("bench", onnx, "--seconds", -1), "--seconds"),
        (("bench-head", "--features", 0), "--features"),
        (("compress", trained, "--batch", "0", "-o", tmp_path / "c"), "--batch"),
        (("compress", trained, "--providers", "tpu", "-o", tmp_path / "c"), "no provider"),
        (("compress", trained, "--ranker", "influential", "-o", tmp_path / "c"), "needs images"),
        (("compress", trained, "--macs", 0.001, "-o", tmp_path / "c"), "out of reach"),
        (("compress", trained, "--macs", 0.5, "--ratio", 0.5, "-o", tmp_path / "c"), "one budget"),
        (("compress", trained, *digits, "--k2", 99, "-o", tmp_path / "c"), "25 features"),
        (("compress", trained, *digits, "--epochs", -1, "-o", tmp_path / "c"), "--epochs"),
        (("compress", trained, *digits, "--head", "tilde", "-o", tmp_path / "c"), "no head"),
        (("bench", onnx, "--providers", "cuda"), "onnxruntime-gpu"),
        (("bench", onnx, "--batch", "0"), "--batch"),
        (("bench", tmp_path / "foreign.pt"), "cannot load"),
        (("bench-head", "--features", 4, "--k", 9), "--k"),
        (("evaluate", trained, *digits, "--device", "cuda"), "no CUDA device"),
        (("evaluate", trained, *digits, "--device", "tpu"), "no device"),
    ]
    if torch.cuda.is_available():
        cases = [c for c in cases if "cuda" not in c[0]]
    for words, match in cases:
        assert match in fails(capsys, *words), words
    assert not (tmp_path / "out.safetensors").exists()
    assert not (tmp_path / "c").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    for words in ((), ("compres",), ("prune", trained), ("bench", onnx, "--batch", "one"), ("rank", trained, "-o", "x")):
        fails(capsys, *words, status=2)


def test_data_that_does_not_match(capsys, tmp_path, trained):
    for name in ("cat", "dog"):
        for split in ("train", "test"):
            (tmp_path / "two" / split / name).mkdir(parents=True)
            Image.new("L", (28, 28)).save(tmp_path / "two" / split / name / "0.png")
    assert "10 classes" in fails(capsys, "evaluate", trained, "--data", f"folder:{tmp_path}/two")
    for i in range(10):
        for split in ("train", "test"):
            (tmp_path / "ten" / split / f"class{i}").mkdir(parents=True)
            Image.new("L", (28, 28)).save(tmp_path / "ten" / split / f"class{i}" / "0.png")
    assert "class names differ" in fails(capsys, "evaluate", trained, "--data", f"folder:{tmp_path}/ten")
    onnx = tmp_path / "m.onnx"
    assert main(["export", str(trained), "-o", str(onnx)]) == 0
    capsys.readouterr()
    assert "other classes" in fails(capsys, "evaluate", onnx, "--data", f"folder:{tmp_path}/ten")


def test_python_cli_py_works_as_well(tmp_path):
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, root / "cli.py", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("slimrank "), done.stderr


def test_evaluate_gives_the_published_figure(capsys, tmp_path, resnet20, cifar):
    """81.03 % on the 10,000 test images, from the checkpoint and from its ONNX file."""
    data = ("--data", f"folder:{cifar}")
    found = run(capsys, "evaluate", resnet20, "--model", "resnet20-cifar", *data)
    assert (found["n"], round(found["top1"], 4)) == (10_000, 0.8103)
    out = tmp_path / "m.onnx"
    exported = run(capsys, "export", resnet20, "--model", "resnet20-cifar", *data, "-o", out)
    assert exported["agreement"] == 1.0
    assert run(capsys, "evaluate", out, *data)["top1"] == found["top1"]


def test_disk_full_leaves_no_half_file(trained, tmp_path):
    if shutil.which("bash") is None or os.name != "posix":
        pytest.skip("needs ulimit")
    script = f"ulimit -f 64; exec {sys.executable} -m slimrank.cli export {trained} -o {tmp_path}/m.onnx"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert list(tmp_path.glob("*.onnx")) == []
