"""Hooks of a run: the share of time spent waiting for data, signals that stop it, the forecast, the bar of minutes."""

import signal
from types import SimpleNamespace

import pytest
import torch

from guided_diffusion.training import hooks as waiting
from guided_diffusion.training.hooks import Forecast, MinuteBar, StepResult, StopSignals, WaitingShare


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


def test_a_large_share_is_told_once_and_a_short_one_not(clock, capsys):
    share = WaitingShare(2)
    for seconds, told in ((9, False), (11, True), (11, False)):
        share.next(slow(clock, seconds))
        clock[0] += 11
        share.take()
        out = capsys.readouterr().out
        assert ("warning: 50% of the time goes into waiting for images. More --num_workers than 2" in out) == told


# ---- signals and the forecast ----------------------------------------------------------------------------------------


def processes_of(count):
    return SimpleNamespace(count=count)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_a_second_one_stops_at_once(number, capsys):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), StopSignals(processes_of(1)) as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number
        assert f"{signal.Signals(number).name}: finishing the step" in capsys.readouterr().out
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_several_processes_do_not_count_signals(capsys):
    with StopSignals(processes_of(2)) as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT and capsys.readouterr().out == ""


@pytest.mark.parametrize(("seconds", "minutes", "warns"), [(1.0, 0, True), (0.01, 0, False), (1.0, 60, False)])
def test_a_run_of_days_is_warned_of_early_and_once(seconds, minutes, warns, capsys):
    options = SimpleNamespace(max_minutes=minutes)
    loop = SimpleNamespace(step=5, last_step=200_005, device=torch.device("cpu"), options=options)
    forecast = Forecast()
    forecast.begin(loop)
    for loop.step in (6, 7, 8):
        forecast.after_step(loop, StepResult(loop.step, False, seconds=seconds))
    assert capsys.readouterr().out.count("steps will take 2 days or so; a smaller model takes less") == warns


# ---- the bar of a run with a time limit ------------------------------------------------------------------------------


def test_with_a_time_limit_the_bar_counts_minutes_and_says_the_step(clock, capsys):
    loop = SimpleNamespace(step=10, last_step=100_000, began=clock[0], options=SimpleNamespace(max_minutes=20))
    bar = MinuteBar(loop)
    assert "0.0/20.0 min" in capsys.readouterr().err
    for loop.step in (11, 12, 13):
        clock[0] += 100
        bar.move(loop, loop.step, {"loss": "0.5"})
    assert (bar.bar.n, bar.bar.total) == (pytest.approx(5), 20)
    bar.bar.refresh()
    line = capsys.readouterr().err
    assert " 25%|" in line and "5.0/20.0 min" in line and "step=13, loss=0.5" in line and "100000" not in line
    bar.close()


def test_the_bar_of_minutes_ends_with_the_last_step_where_that_comes_first(clock):
    loop = SimpleNamespace(step=0, last_step=6, began=clock[0], options=SimpleNamespace(max_minutes=20))
    bar = MinuteBar(loop)
    for loop.step in range(1, 7):
        clock[0] += 60
        bar.move(loop, loop.step, {})
        assert bar.bar.total == pytest.approx(6)
    assert bar.bar.n == pytest.approx(6)
    bar.close()
