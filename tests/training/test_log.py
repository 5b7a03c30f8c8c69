"""The run's log: console lines beside a bar, JSON lines and TensorBoard, each step once."""

import json
import logging
import os
import threading

import pytest
from tqdm import tqdm

from guided_diffusion.runtime.console import console
from guided_diffusion.runtime.errors import describe_os_error
from guided_diffusion.training.log import RunLog


def rows(folder):
    """What log.jsonl holds."""
    return [json.loads(line, parse_constant=pytest.fail) for line in (folder / "log.jsonl").read_text().splitlines()]


def curves(folder):
    """{tag: [(step, value)]} of the TensorBoard files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, round(e.value, 5)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def write(folder, steps, start=0):
    log = RunLog(folder, start)
    for step in steps:
        log.write(step, {"loss": step / 10, "lr": 0.5})
    log.close()


def test_one_row_a_step_in_every_form(tmp_path):
    write(tmp_path / "new", [1, 2])
    assert rows(tmp_path / "new") == [{"step": 1, "loss": 0.1, "lr": 0.5}, {"step": 2, "loss": 0.2, "lr": 0.5}]
    assert curves(tmp_path / "new") == {"loss": [(1, 0.1), (2, 0.2)], "lr": [(1, 0.5), (2, 0.5)]}


def test_rows_can_be_read_while_the_run_goes_on(tmp_path):
    log = RunLog(tmp_path)
    log.write(1, {"loss": 1.0})
    assert len(rows(tmp_path)) == 1 and curves(tmp_path) == {"loss": [(1, 1.0)]}
    log.close()


def test_resumed_log_has_each_step_once(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], start=2)  # the checkpoint was of step 2
    assert [line["step"] for line in rows(tmp_path)] == [1, 2, 3, 4, 5]
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2, 3, 4, 5]


def test_a_torn_last_line_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    write(tmp_path, [3], start=2)
    assert [line["step"] for line in rows(tmp_path)] == [1, 2, 3]


def test_a_new_run_starts_a_new_log(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert [line["step"] for line in rows(tmp_path)] == [1]


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    log = RunLog(tmp_path)
    log.write(1, {"loss": float("nan"), "vb": float("inf"), "lr": 0.5})
    log.close()
    assert rows(tmp_path) == [{"step": 1, "loss": None, "vb": None, "lr": 0.5}]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_names_the_log(tmp_path):
    log = RunLog(tmp_path)
    log.jsonl = open("/dev/full", "w")
    with pytest.raises(OSError) as error:
        log.write(1, {"loss": 1.0})
    assert describe_os_error(error.value) == f"{tmp_path / 'log.jsonl'}: No space left on device"
    log.jsonl = open(os.devnull, "w")
    log.close()


def test_a_full_disk_in_the_curves_thread_prints_no_traceback(tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    printed, before = [], set(threading.enumerate())
    monkeypatch.setattr(threading, "excepthook", printed.append)
    log = RunLog(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(OSError):
        for step in range(1, 4):
            log.write(step, {"loss": 1.0})
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    log.jsonl.close()
    assert not printed


def test_console_writes_a_line_once_and_beside_the_bar(capsys):
    assert console() is console() is logging.getLogger("medsegdiff")
    with tqdm(total=2, desc="bar") as bar:
        bar.update()
        console().info("a line")
    out, err = capsys.readouterr()
    assert out == "a line\n" and "a line" not in err


def test_a_damaged_row_is_dropped_with_a_warning(tmp_path, caplog):
    write(tmp_path, [1, 2])
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": "3"}\n[1]\n')
    write(tmp_path, [3], start=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert f"warning: {tmp_path / 'log.jsonl'}: 2 lines with no step or no numbers, left out" in caplog.text
