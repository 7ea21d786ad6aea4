"""Images side by side, a thread each: the same counts, no thread's settings changed, no part left running."""

import signal
import threading
import time
from _thread import interrupt_main

import pytest
import torch

from slimrank.compress.coalitions import activations
from slimrank.compress.coalitions.activations import Chunk
from slimrank.compress.coalitions.game import Coalitions
from slimrank.compress.coalitions.lanes import Stopped, give_way, side_by_side
from slimrank.compress.rankers import car

from .test_screen import random_game


@pytest.fixture(params=[2, 3])
def threads(request):
    own = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(own)


def outcomes(layer, screened):
    """One-shot, and a backward elimination with coalitions dropped on the way, on chunks of eight images a thread."""
    model, channels, batches = random_game(0)
    game = Coalitions(model, channels, layer, batches, classes=5, screened=screened)
    assert (game.screen is not None) == screened
    one_shot = car.with_and_without(game)
    game = Coalitions(model, channels, layer, batches, classes=5, hard_first=True)
    return one_shot, car.backward(game, 4)


@pytest.mark.parametrize("screened", [False, True], ids=["exact", "screened"])
@pytest.mark.parametrize("layer", ["stem", "a", "c"])
def test_the_counts_are_those_of_one_thread(layer, screened, threads, pays, monkeypatch):
    monkeypatch.setattr(activations, "CHUNK_BYTES", 8 * 8 * 10 * 10 * 4)
    found, greedy = outcomes(layer, screened)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    expected, greedy_expected = outcomes(layer, screened)
    assert torch.equal(found.by_class, expected.by_class)
    assert found.likelihood.tolist() == pytest.approx(expected.likelihood.tolist(), abs=1 if screened else 1e-4)
    assert greedy == greedy_expected


def test_a_chunk_is_cut_into_parts_of_one_size():
    chunk = Chunk((torch.randn(11, 3), torch.randn(11, 2, 4)), torch.arange(11), kept=True)
    parts = chunk.cut(3)
    assert [len(part) for part in parts] == [4, 4, 3]
    assert all(part.kept for part in parts)
    for number in range(2):
        assert torch.equal(torch.cat([part.crossing[number] for part in parts]), chunk.crossing[number])
    assert torch.equal(torch.cat([part.labels for part in parts]), chunk.labels)
    again = chunk.cut(3)
    assert all(one is other for one, other in zip(parts, again, strict=True))  # with what was derived from them
    assert len(chunk.cut(40)) == 11
    assert chunk.cut(1)[0] is chunk


def test_a_part_has_one_thread_and_no_gradients_and_others_keep_theirs(threads):
    found = side_by_side(lambda part: (part, torch.get_num_threads(), torch.is_grad_enabled()), range(7), threads)
    assert found == [(part, 1, False) for part in range(7)]
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    of_another: list[int] = []
    thread = threading.Thread(target=lambda: of_another.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert of_another == [threads]


def test_one_lane_runs_in_the_callers_thread():
    found = side_by_side(lambda part: (part, threading.current_thread(), torch.is_grad_enabled()), "ab", 1)
    assert found == [(part, threading.main_thread(), False) for part in "ab"]


def run_until_stopped(ended: list[str]) -> None:
    try:
        for _ in range(3000):
            time.sleep(0.01)
            give_way()
    except Stopped:
        ended.append("stopped")
        raise
    ended.append("to the end")


@pytest.mark.parametrize("failing", [0, 1])
def test_a_part_that_fails_ends_the_others_and_is_told(failing):
    ended: list[str] = []
    both = threading.Barrier(2)

    def work(part):
        if part < 2:
            both.wait(10)
        if part == failing:
            raise ValueError("of this part")
        run_until_stopped(ended)

    with pytest.raises(ValueError, match="of this part"):
        side_by_side(work, range(4), 2)
    assert ended
    assert set(ended) == {"stopped"}
    assert side_by_side(lambda part: part, range(4), 2) == [0, 1, 2, 3]


def test_an_interrupt_ends_all_parts():
    own = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell starts in the background
    ended: list[str] = []

    def work(part):
        if part == 1:
            interrupt_main()
        run_until_stopped(ended)

    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side(work, range(2), 2)
    finally:
        signal.signal(signal.SIGINT, own)
    assert set(ended) <= {"stopped"}
