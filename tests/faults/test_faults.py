"""A `compress` that meets a full disk, a read-only folder, a signal or a kill ends in one line, and goes on to the same result.

A sample of the changes that one run makes in its folder; benchmarks/faults.py takes all of them.
"""

import itertools
import os
import signal
import time

import pytest
import torch

from .forks import ERRORS, Fault, forked, killed, resumed

EVERY = 11  # changes from one that is tried to the next; no multiple of the changes that one file takes
WORDS = [
    "--data",
    "digits",
    "--limit",
    "100",
    "--steps",
    "2",
    "--macs",
    "0.5",
    "--epochs",
    "1",
    "--head",
    "linear",
    "--batch",
    "1",
]


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """Words, folder and record of a run that was forked."""
    import slimrank.cli
    import slimrank.compress.pipeline  # noqa: F401 (imported before there are children)

    def sampled(number, kind, path):
        if kind in ("unlink", "rmdir"):  # errors are tolerated there and signals wait: the run would go on
            return
        if number % EVERY == 0:
            yield Fault(error=ERRORS[number % len(ERRORS)])
        elif number % EVERY == 4:
            yield Fault(signal=(signal.SIGTERM, signal.SIGINT)[number % 2])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    folder = tmp_path_factory.mktemp("faults")
    words = ["compress", str(trained), *WORDS]
    yield words, folder, forked(words, folder, sampled)
    torch.set_num_threads(threads)


def test_the_undisturbed_run_ends(run):
    _, _, record = run
    assert record.status == 0, record.said
    assert len(record.ends) > 20
    assert {end.kind for end in record.ends} >= {"open", "write", "fsync", "rename"}


def test_a_fault_ends_in_one_line_and_changes_no_finished_file(run):
    _, _, record = run
    assert record.wrong == []


def test_the_disk_has_what_is_renamed(run):
    """Each file in DIR gets its name after fsync, the last thing that happens to it."""
    _, _, record = run
    renamed = [(record.events[i - 1], path) for i, (kind, path) in enumerate(record.events) if kind == "rename"]
    assert len(renamed) > 20
    assert all(before == ["fsync", path] for before, path in renamed)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_what_a_kill_leaves_is_gone_on_from_to_the_bit(run, share):
    words, folder, record = run
    state = record.states[int(share * len(record.states))]
    again = resumed(words, folder / "states" / state, folder)
    assert again.wrong(record.files) == ""


def test_a_run_killed_again_and_again_comes_to_the_same_bits(run):
    words, folder, record = run
    kills, again = killed(words, folder, itertools.chain([1.5, 2.5], itertools.repeat(3600)))
    assert again.wrong(record.files) == ""
    if kills:
        assert "was killed; going on from what it left" in again.said


def test_a_clock_that_was_set_back_changes_nothing(run, monkeypatch):
    """Files are of next year, and it is 1970."""
    words, folder, record = run
    state = folder / "states" / record.states[-2]
    for path in state.rglob("*"):
        os.utime(path, (time.time() + 3e7,) * 2)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert resumed(words, state, folder).wrong(record.files) == ""
