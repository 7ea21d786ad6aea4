"""Nothing is lost or lied about: how runs end, what lies in a folder, and which images have taught a network."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from slimrank.cli import main
from slimrank.compress.folder import LEFT, Folder
from slimrank.compress.network.checkpoint import load, save
from slimrank.compress.pipeline import STAGES
from slimrank.endings import ending
from slimrank.errors import SlimrankError, Terminated
from slimrank.evaluate.data import Preprocessing, open_data

FAULTS = Path(__file__).with_name("faults")


def test_faults():
    """tests/faults in a process of its own: it forks the process that it runs in, which must hold no threads of other tests."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", "0", "--dist", "no", FAULTS]
    done = subprocess.run(
        command, cwd=FAULTS.parents[1], capture_output=True, text=True, timeout=400,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (SlimrankError("`size` is 0;\nmust be 1"), "error: `size` is 0; must be 1", 1),
        (SlimrankError("x is " + "y" * 10**5 + "; mend it"), "error: x is " + "y" * 995 + " ... " + "y" * 491 + "; mend it", 1),
        (KeyboardInterrupt(), "error: interrupted; `slimrank train` goes on when run again", 130),
        (Terminated("terminated"), "error: terminated; `slimrank train` goes on when run again", 143),
        (BrokenPipeError(), "", 1),
        (OSError(errno.ENOSPC, "No space left on device", "x.npy"), "error: cannot write x.npy: No space left on device", 1),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "error: cannot write a file: Disk quota exceeded", 1),
        (PermissionError(errno.EACCES, "Permission denied", "x.pt"), "error: x.pt: Permission denied; check the path", 1),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 999), "File name too long; check the path", 1),
        (OSError(errno.EIO, "Input/output error"), "error: a file: Input/output error; check the disk", 1),
        (OSError(errno.EROFS, "Read-only file system", "x.pt"), "error: x.pt: Read-only file system; check the disk", 1),
        (OSError(errno.EBADF, "Bad file descriptor"), "this is a defect", 1),
        (ZeroDivisionError("division by zero"), "error: ZeroDivisionError: division by zero; this is a defect", 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_end_is_one_line_and_a_status(error, line, status):
    told, code = ending(error, "slimrank train")
    assert line in told
    assert "\n" not in told
    assert code == status


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [("> /dev/full", 1, "error: cannot write to standard output: No space left"), (">&-", 0, ""), ("2>&-", 0, "")],
    ids=["full", "stdout closed", "stderr closed"],
)
def test_output_that_cannot_be_written(tmp_path, redirection, status, said):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text('{"ranker": "l1", "scores": {"conv1": [1.0, 2.0, 3.0]}}')
    words = f"exec {sys.executable} -m slimrank compare-ranks {tmp_path}/a.json {tmp_path}/b.json {redirection}"
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_run_is_refused_and_sigterm_frees_the_folder(trained, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["compress", str(trained), "--data", "digits", "--epochs", "5000", "-o", str(out)]
    first = subprocess.Popen([sys.executable, "-m", "slimrank", *words], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "state.json").exists() and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert first.poll() is None
        assert main(words) == 1
        assert f"another run is at work in {out}" in capsys.readouterr().err
        while first.poll() is None and time.monotonic() < deadline:
            first.terminate()  # again where Python was in a callback, whose exceptions it drops
            time.sleep(2)
        _, said = first.communicate(timeout=10)
    finally:
        first.kill()
    assert first.returncode == 143
    assert "error: terminated; `slimrank compress` goes on when run again" in said
    assert not list(out.rglob("*.tmp"))
    state = json.loads((out / "state.json").read_text())
    Folder.open(out, state["asked"], state["data"], tuple(STAGES), trained).lock.release()


# -- what lies in DIR ------------------------------------------------------------------------------------------------


def opened(path, data="digits", **asked):
    return Folder.open(path, asked, data, tuple(STAGES), path / "nowhere.pt")


@pytest.fixture
def finished(tmp_path):
    """A folder in which every stage is done, with a file for each that leaves one."""
    with opened(tmp_path, budget=0.5) as folder:
        for stage in STAGES:
            for name in LEFT.get(stage, ()):
                (tmp_path / name).write_text(f"of {stage}")
            folder.finish(stage, {"name": stage})
    return tmp_path


def test_a_finished_folder_is_taken_as_it_is(finished):
    with opened(finished, budget=0.5) as folder:
        assert list(folder.done) == list(STAGES)


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ([], 8),
        (["slim.safetensors"], 5),
        (["model.onnx"], 6),
        (["stages/scores.json"], 8),
        (["stages/scores.json", "model.onnx"], 1),
    ],
)
def test_stages_whose_files_are_gone_are_run_again(finished, gone, left):
    for name in gone:
        (finished / name).unlink()
    with opened(finished, budget=0.5) as folder:
        assert list(folder.done) == list(STAGES)[:left]


def test_in_an_unfinished_folder_every_file_counts(finished):
    state = finished / "state.json"
    known = json.loads(state.read_text())
    state.write_text(json.dumps({**known, "stages": known["stages"][:5]}))
    (finished / "stages/pruned.safetensors").unlink()
    with opened(finished, budget=0.5) as folder:
        assert list(folder.done) == list(STAGES)[:2]


def test_a_file_that_was_exchanged_is_refused(finished):
    (finished / "slim.safetensors").write_text("of somebody else")
    with pytest.raises(SlimrankError, match=r"slim\.safetensors is not as this run left it; remove the folder"):
        opened(finished, budget=0.5)
    (finished / "slim.safetensors").write_text("of specialize")
    opened(finished, budget=0.5).lock.release()  # what refuses a folder leaves it free


def test_other_images_and_options_are_refused(finished):
    with pytest.raises(SlimrankError, match="the images behind `data` have changed"):
        opened(finished, data="others", budget=0.5)
    with pytest.raises(SlimrankError, match=r"`budget` 0\.5, not 0\.7"):
        opened(finished, budget=0.7)


def test_a_folder_that_is_in_use_is_refused(finished):
    with opened(finished, budget=0.5), pytest.raises(SlimrankError, match="another run is at work"):
        opened(finished, budget=0.5)


@pytest.mark.parametrize("name", ["slim.safetensors", "stages/pruned.safetensors"])
def test_the_checkpoint_that_is_read_is_not_replaced(trained, tmp_path, capsys, name):
    target = tmp_path / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(trained.read_bytes())
    assert main(["compress", str(target), "--macs", "0.5", "-o", str(tmp_path)]) == 1
    assert "is the file that is read" in capsys.readouterr().err
    assert target.read_bytes() == trained.read_bytes()


def test_the_teacher_is_not_replaced(trained, tmp_path, capsys):
    teacher = tmp_path / "t.safetensors"
    teacher.write_bytes(trained.read_bytes())
    assert main(["finetune", str(trained), "--teacher", str(teacher), "--data", "digits", "-o", str(teacher)]) == 1
    assert "is the file that is read" in capsys.readouterr().err
    assert teacher.read_bytes() == trained.read_bytes()


def test_a_fingerprint_follows_the_files(tmp_path):
    from PIL import Image

    for i in range(12):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    before = open_data(f"images:{tmp_path}", Preprocessing.default(1, 8)).fingerprint
    assert open_data(f"images:{tmp_path}", Preprocessing.default(1, 8)).fingerprint == before
    os.utime(tmp_path / "3.png", (1, 1))
    assert open_data(f"images:{tmp_path}", Preprocessing.default(1, 8)).fingerprint != before


def test_a_run_that_was_killed_is_taken_over_and_its_leftovers_go(finished):
    (finished / ".running").write_text("123\n")
    (finished / ".model.onnx.123.tmp").write_text("half")
    (finished / "stages" / ".dense.onnx.k3_9x0ab.tmp").mkdir()
    (finished / ".notes.tmp").write_text("the user's own")
    with opened(finished, budget=0.5) as folder:
        assert folder.taken_over == f"the run in {finished} (process 123) was killed; going on from what it left"
        assert list(folder.done) == list(STAGES)
    assert {path.name for path in finished.rglob(".*")} <= {".lock", ".notes.tmp"}
    assert (finished / ".notes.tmp").exists()
    with opened(finished, budget=0.5) as folder:
        assert not folder.taken_over


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOLCK, "on a file system that cannot lock files"),
        (errno.EOPNOTSUPP, "on a file system that cannot lock files"),
        (errno.ENOSYS, "on a file system that cannot lock files"),
        (errno.EIO, "cannot write"),
    ],
    ids=errno.errorcode.get,
)
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, number, said):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(SlimrankError, match=said):
        opened(tmp_path)


# -- which images have taught a network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainings", "validation", "seen"),
    [
        (None, "train:0.1", None),
        ([("digits", 0)], "train:0.1", False),
        ([("digits", 0), ("digits", 1)], "train:0.1", True),
        ([("digits", 1)], "train:0.1", True),
        ([("digits", 1)], "test:0.2", False),
        ([("digits", 0), ("folder:x", 0)], "train:0.1", None),
        ([("digits", 1), ("folder:x", 0)], "train:0.1", True),
    ],
)
def test_every_training_counts_for_what_validation_is_worth(trained, trainings, validation, seen):
    given = load(trained)
    data = open_data("digits", given.preprocessing, validation=validation)
    said = None
    if trainings is not None:
        said = [{**data.identity, "validation": "train:0.1", "data": spec, "seed": seed} for spec, seed in trainings]
    assert replace(given, trained_on=said).validation_seen(data) is seen


def test_trainings_are_kept_with_the_file(trained, tmp_path):
    given = load(trained)
    other = open_data("digits", given.preprocessing, seed=1)
    taught = given.taught(other).taught(other)
    assert [one["seed"] for one in taught.trained_on] == [0, 1]
    save(taught, tmp_path / "x.safetensors")
    assert load(tmp_path / "x.safetensors").trained_on == taught.trained_on
    assert replace(given, trained_on=None).taught(other).trained_on is None  # what it saw before nobody knows
