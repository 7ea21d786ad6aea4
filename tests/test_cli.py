"""The command line: keys, exit codes, one-line errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slimrank.cli import main
from slimrank.compress.network.checkpoint import load, save
from slimrank.compress.stages.finetune import fresh

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
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", page)  # whole in itself
    assert page.count("<svg") >= 2
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


def test_python_cli_py_works_as_well(tmp_path):
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, root / "cli.py", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("slimrank "), done.stderr


def test_evaluate_gives_the_published_figure(capsys, tmp_path, resnet20, cifar):
    """81.03 % on the 10,000 test images, and the same decisions from its ONNX file."""
    data = ("--data", f"folder:{cifar}")
    found = run(capsys, "evaluate", resnet20, "--model", "resnet20-cifar", *data)
    assert (found["n"], round(found["top1"], 4)) == (10_000, 0.8103)
    out = tmp_path / "m.onnx"
    exported = run(capsys, "export", resnet20, "--model", "resnet20-cifar", *data, "--limit", "1000", "-o", out)
    assert exported["agreement"] == 1.0
    few = (*data, "--limit", "1000")
    assert (
        run(capsys, "evaluate", out, *few)["top1"]
        == run(capsys, "evaluate", resnet20, "--model", "resnet20-cifar", *few)["top1"]
    )


def test_disk_full_leaves_no_half_file(trained, tmp_path):
    if shutil.which("bash") is None or os.name != "posix":
        pytest.skip("needs ulimit")
    script = f"ulimit -f 64; exec {sys.executable} -m slimrank.cli export {trained} -o {tmp_path}/m.onnx"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert list(tmp_path.glob("*.onnx")) == []
