"""When a training run was begun, gone on with and ended: OUT/sessions.jsonl, a line for each."""

import json
import signal
import time
from contextlib import contextmanager
from pathlib import Path

from .files import read_json_lines

FILE = "sessions.jsonl"


@contextmanager
def recorded(loop):
    """Note in the run's folder that a `TrainLoop` begins and, on leaving, how it ended; a killed one leaves no end."""
    path = loop.folder.path / FILE
    _append(path, event="begin", step=loop.step)
    how = None
    try:
        yield
        how = _reason(loop)
    except BaseException as error:
        how = type(error).__name__
        raise
    finally:
        _append(path, event="end", step=loop.step, how=how)


def read_sessions(folder):
    """The lines of a folder's sessions.jsonl as dicts, in their order; [] without it."""
    return read_json_lines(Path(folder) / FILE)


def interruptions(sessions):
    """[(step gone on from, how the session before ended)], "killed" where it left no word, of what `read_sessions`
    returns."""
    found, before = [], None
    for line in sessions:
        if line["event"] == "begin" and before is not None:
            found.append((line["step"], "killed" if before["event"] == "begin" else before["how"]))
        before = line
    return found


def _reason(loop):
    if loop.stop_signal is not None:
        return signal.Signals(loop.stop_signal).name
    return "complete" if loop.step >= loop.last_step else "stopped"


def _append(path, **facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({**facts, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}) + "\n")
