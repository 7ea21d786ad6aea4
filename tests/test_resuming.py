"""What is killed goes on, skips what ended, and comes to the same result; a damaged folder is refused."""

import json
import shutil
from dataclasses import replace

import pytest

from slimrank.compress import pipeline
from slimrank.compress.options import CompressOptions
from slimrank.compress.pruning.options import Cut
from slimrank.compress.stages import prune as pruning
from slimrank.compress.stages.options import PruneOptions
from slimrank.compress.training.recipe import Recipe
from slimrank.errors import SlimrankError
from slimrank.evaluate.dataspec import DataSpec
from slimrank.evaluate.timing import Timing

OPTIONS = CompressOptions(
    data=DataSpec(data="digits"), pruning=PruneOptions(cut=Cut(max_drop=0.1)), training=Recipe(epochs=1, lr=0.05),
    timing=Timing(batch=(1,)), head="linear",
)  # fmt: skip


@pytest.fixture(scope="module")
def killed(tmp_path_factory, trained):
    """A run of `max_drop` that was killed in its third trial, and the same run never stopped: folders, trainings run."""
    folder = tmp_path_factory.mktemp("killed")
    runs = []

    def counted(*words, **more):
        runs.append(more)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return train(*words, **more)

    train = pruning.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "train", counted)
        with pytest.raises(KeyboardInterrupt):
            pipeline.start(trained, folder / "killed", OPTIONS).finish()
        runs[:] = [None] * 3
        report = pipeline.start(trained, folder / "whole", OPTIONS).finish()
    return folder, report, len(runs) - 3


def test_trials_of_a_killed_compress_are_not_run_again(killed, trained, tmp_path, monkeypatch):
    folder, whole, trainings = killed
    runs, train = [], pruning.train
    monkeypatch.setattr(pruning, "train", lambda *words, **more: (runs.append(more), train(*words, **more))[1])
    shutil.copytree(folder / "killed", tmp_path / "killed")
    again = pipeline.start(trained, tmp_path / "killed", OPTIONS).finish()
    assert len(runs) == trainings - 2
    ours, reference = (next(s for s in report["stages"] if s["name"] == "prune") for report in (again, whole))
    assert ours["trials"] == reference["trials"]
    assert ours["keep"] == reference["keep"]
    slim = [run / "slim.safetensors" for run in (tmp_path / "killed", folder / "whole")]
    assert slim[0].read_bytes() == slim[1].read_bytes()


def test_a_cut_that_was_read_back_is_the_cut_that_was_made(killed, trained, tmp_path, monkeypatch):
    """Killed after its last trial: nothing is left to train, and the file is the same, bit for bit."""
    folder = killed[0]
    shutil.copytree(folder / "killed", tmp_path / "late")
    for path in (folder / "whole" / "stages").glob("trial*"):
        shutil.copy(path, tmp_path / "late" / "stages")
    monkeypatch.setattr(pruning, "train", None)
    pipeline.start(trained, tmp_path / "late", OPTIONS).finish()
    assert (tmp_path / "late" / "slim.safetensors").read_bytes() == (folder / "whole" / "slim.safetensors").read_bytes()


@pytest.mark.parametrize("wrong", ['{"0.5": 99.0}', '{"0.5": "0.9"}', '{"0.5": NaN}', "[1]", '{"0.5"'])
def test_damaged_trials_are_refused(killed, trained, tmp_path, wrong):
    shutil.copytree(killed[0] / "killed", tmp_path / "killed")
    (tmp_path / "killed" / "stages" / "trials.json").write_text(wrong)
    with pytest.raises(SlimrankError, match="remove it, and its trials are run again"):
        pipeline.start(trained, tmp_path / "killed", OPTIONS).finish()


def test_the_result_is_held_to_the_drop(trained, tmp_path):
    """Every cut looks harmless to trials that lie; the deepest is taken, and the loss is said."""
    lied = tmp_path / "lied" / "stages" / "trials.json"
    lied.parent.mkdir(parents=True)
    lied.write_text(json.dumps({str(1 / 2**n): 1.0 for n in range(1, 5)}))
    report = pipeline.start(trained, tmp_path / "lied", OPTIONS).finish()
    assert "more than `max_drop` 0.1 allows" in next(s["says"] for s in report["stages"] if s["name"] == "prune")


def test_a_folder_of_another_run_is_refused(killed, trained, tmp_path):
    shutil.copytree(killed[0] / "killed", tmp_path / "killed")
    with pytest.raises(SlimrankError, match="was made with `seed` 0, not 1"):
        pipeline.start(trained, tmp_path / "killed", replace(OPTIONS, seed=1))


@pytest.mark.parametrize("wrong", ['{"asked": [], "stages": []}', "ASKED [1]", 'ASKED [{"name": "rnak"}]', "{"])
def test_a_damaged_state_is_refused(killed, trained, tmp_path, wrong):
    shutil.copytree(killed[0] / "killed", tmp_path / "killed")
    state = tmp_path / "killed" / "state.json"
    asked = json.dumps(json.loads(state.read_text())["asked"])
    state.write_text(f'{{"asked": {asked}, "stages": {wrong[5:]}}}' if wrong.startswith("ASKED") else wrong)
    with pytest.raises(SlimrankError, match="remove the folder"):
        pipeline.start(trained, tmp_path / "killed", OPTIONS)


def test_a_damaged_row_is_refused(killed, trained, tmp_path):
    shutil.copytree(killed[0] / "killed", tmp_path / "killed")
    state = tmp_path / "killed" / "state.json"
    told = json.loads(state.read_text())
    told["stages"][0]["top1"] = "high"
    state.write_text(json.dumps(told))
    with pytest.raises(SlimrankError, match="remove the folder"):
        pipeline.start(trained, tmp_path / "killed", OPTIONS).finish()


def test_a_search_that_ends_without_a_cut_leaves_nothing_behind(trained, tmp_path, capsys):
    from slimrank.cli import main

    out = tmp_path / "p.safetensors"
    words = ["prune", str(trained), "--data", "digits", "--limit", "60", "--max-drop", "0", "--epochs", "0", "-o", str(out)]
    assert main([*words, "--protect", "conv1", "--protect", "conv2", "--protect", "fc1", "--min-filters", "24"]) == 1
    assert "max-drop 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_stage_file_that_is_damaged_says_what_to_do(killed, trained, tmp_path):
    shutil.copytree(killed[0] / "whole", tmp_path / "whole")
    state = tmp_path / "whole" / "state.json"
    told = json.loads(state.read_text())
    state.write_text(json.dumps({**told, "stages": told["stages"][:4]}))
    (tmp_path / "whole" / "stages" / "finetuned.safetensors").write_text("garbage")
    with pytest.raises(SlimrankError, match="remove the folder"):
        pipeline.start(trained, tmp_path / "whole", OPTIONS).finish()
