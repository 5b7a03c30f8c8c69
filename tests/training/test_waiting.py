"""The share of the time that goes into waiting for data."""

import pytest

from guided_diffusion.training import loop as waiting
from guided_diffusion.training.hooks import WaitingShare


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what a test adds to its one entry."""
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    return now


def slow(clock, seconds):
    """Endless batches that take so many seconds each."""
    while True:
        clock[0] += seconds
        yield "batch"


def test_share_is_of_the_time_since_it_was_last_taken(clock):
    share, batches = WaitingShare(2), slow(clock, 1)
    for _ in range(3):
        assert share.next(batches) == "batch"
        clock[0] += 3
    assert share.share == share.take() == pytest.approx(0.25)
    clock[0] += 5
    assert share.take() == 0
    share.next(slow(clock, 9))
    clock[0] += 1
    assert share.take() == pytest.approx(0.9)


def test_a_large_share_is_reported_once_and_a_short_one_not(clock, capsys):
    share = WaitingShare(2)
    for seconds, warned in ((9, False), (11, True), (11, False)):
        share.next(slow(clock, seconds))
        clock[0] += 11
        share.take()
        out = capsys.readouterr().out
        assert ("warning: 50% of the time goes into waiting for images. More --num_workers than 2" in out) == warned
