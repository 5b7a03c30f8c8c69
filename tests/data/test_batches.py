"""Batches: their order, workers, and the slices that training draws from."""

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from itertools import islice
from multiprocessing import resource_sharer
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import ArrayDataset, Stack, array_dataset

from guided_diffusion.data.batches import (
    Selection,
    SlowReading,
    TrainingOrder,
    collate,
    sampling_batches,
    select_slices,
    single_items,
    training_batches,
)
from guided_diffusion.runtime.console import console
from guided_diffusion.runtime.distributed import Processes
from guided_diffusion.runtime.errors import UserError, run_script


@pytest.fixture
def dataset(tmp_path):
    return array_dataset(tmp_path)


def test_collate_stacks_tensors_and_lists_the_rest(dataset):
    batch = collate([dataset[0], dataset[1]])
    assert batch["image"].shape == (2, 2, 16, 16) and batch["mask"].shape == (2, 2, 2, 16, 16)
    assert batch["name"] == ["c0", "c1"] and batch["size"] == [(20, 30), (20, 30)]
    labelled = [{**dataset[i], "label": i} for i in range(2)]
    assert torch.equal(collate(labelled)["label"], torch.tensor([0, 1]))
    with pytest.raises(UserError, match="case c1: differs from c0 in having label"):
        collate([dataset[0], labelled[1]])


@pytest.mark.parametrize("length, batch_size", [(10, 3), (4, 7), (6, 6)])
def test_training_order_visits_each_item_once_per_epoch(length, batch_size):
    epochs = 5
    batches = islice(TrainingOrder(Selection.of_all(length), batch_size, seed=3), epochs * length)
    flat = [index for batch in batches for index, _ in batch][: epochs * length]
    orders = [flat[i : i + length] for i in range(0, len(flat), length)]
    assert all(sorted(order) == list(range(length)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


@pytest.mark.parametrize("start", [1, 2, 3, 4, 11])
def test_training_order_resumes_at_any_step(start):
    whole = list(islice(TrainingOrder(Selection.of_all(10), 3, seed=1), 20))
    assert list(islice(TrainingOrder(Selection.of_all(10), 3, seed=1, start_step=start), 20 - start)) == whole[start:]


def test_training_order_depends_on_the_seed():
    first, second = (list(islice(TrainingOrder(Selection.of_all(50), 5, seed), 10)) for seed in (1, 2))
    assert first != second


def test_workers_do_not_change_the_batches(dataset):
    alone = list(islice(training_batches(dataset, 2, seed=5, start_step=3), 6))
    helped = list(islice(training_batches(dataset, 2, seed=5, start_step=3, num_workers=2), 6))
    for one, other in zip(alone, helped, strict=True):
        assert one["name"] == other["name"]
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["mask"], other["mask"])


def test_sampling_batches_keep_the_order_and_the_last_short_batch(dataset):
    batches = sampling_batches(dataset, [[4, 0], [2]])
    assert len(batches) == 2
    assert [batch["name"] for batch in batches] == [["c4", "c0"], ["c2"]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_workers_stay_one_line(tmp_path, num_workers):
    dataset = array_dataset(tmp_path, images={**ArrayDataset.images, "c2": np.full((2, 20, 30), np.inf)})
    with pytest.raises(UserError) as caught:
        list(sampling_batches(dataset, [[0], [2]], num_workers=num_workers))
    assert (
        str(caught.value)
        == f"{tmp_path / 'c2'}: 100 % of its values are not finite (NaN or infinite); repair it or leave it out"
    )


# ---- workers that cannot deliver -----------------------------------------------------------------------------------


class NoRoom:
    """Cannot be sent, as a tensor where /dev/shm is full."""

    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


class Failing(ArrayDataset):
    """The item 2 is what `fail` returns in a worker."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item if index != 2 or torch.utils.data.get_worker_info() is None else item | {"note": self.fail()}


FAILURES = {
    "killed": (lambda _: os.kill(os.getpid(), signal.SIGKILL), "was ended by the signal Killed; most likely memory"),
    "exits": (
        lambda _: os._exit(3),
        "ended with the exit status 3, as by sys.exit() in a loader or a library",
    ),
    "crashes": (lambda _: os.kill(os.getpid(), signal.SIGSEGV), "crashed (Segmentation fault) in a library that reads"),
    "full": (lambda _: NoRoom(), "too little for the batches of the processes that read images: give it more"),
    "function": (lambda _: lambda: 0, "an item of the loader cannot be sent between processes"),
    "file": (lambda _: open(os.devnull), "use --num_workers 0"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
@pytest.mark.parametrize("failure", FAILURES)
def test_a_worker_that_cannot_deliver_ends_the_loop_with_one_line(tmp_path, failure):
    fail, message = FAILURES[failure]
    dataset = type("Made", (Failing,), {"fail": fail})(tmp_path, 16)
    assert len(list(sampling_batches(dataset, [[0], [2]]))) == 2
    with pytest.raises(UserError) as caught:
        list(sampling_batches(dataset, [[0], [1], [2], [3], [4]], num_workers=2))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked")
def test_a_worker_that_a_disk_holds_ends_after_its_killed_main_process(tmp_path, monkeypatch):
    monkeypatch.setattr("guided_diffusion.data.batches.PARENT_CHECKED", 0.1)
    held = tmp_path / "held"

    def hang(_):
        held.write_text(str(os.getpid()))
        time.sleep(60)

    main = os.fork()
    if not main:
        with suppress(BaseException):
            next(iter(sampling_batches(type("Made", (Failing,), {"fail": hang})(tmp_path, 16), [[2]], num_workers=1)))
        os._exit(0)
    until = time.monotonic() + 20
    while not (held.is_file() and held.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(main, signal.SIGKILL)
    os.waitpid(main, 0)
    worker = Path(f"/proc/{held.read_text()}")
    while worker.exists() and worker.joinpath("stat").read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert not worker.exists() or worker.joinpath("stat").read_text().split()[2] == "Z"


class HandingOut(torch.utils.data.Dataset):
    """Items are the address at which their worker hands out the memory of its batches."""

    def __len__(self):
        return 2

    def load_shared(self):
        pass

    def __getitem__(self, index):
        return resource_sharer.DupFd(os.open(os.devnull, os.O_RDONLY))._id[0]


@pytest.mark.skipif(sys.platform != "linux", reason="workers hand out files")
def test_a_worker_prints_nothing_where_the_main_process_breaks_off_fetching(capfd):
    for address in single_items(HandingOut(), num_workers=1):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(address)
            caller.sendall(b"\0")  # less than a message
    assert capfd.readouterr().err == ""


def test_shared_memory_that_cannot_be_used_is_named(dataset, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")  # as of a semaphore, without a file's name

    monkeypatch.setattr("multiprocessing.Lock", no_room)
    assert len(list(single_items(dataset))) == len(dataset)
    with pytest.raises(UserError, match=r"/dev/shm: cannot be used .* \(No space left on device\); .*--num_workers 0"):
        list(single_items(dataset, num_workers=1))


def test_a_lost_worker_is_one_line_wherever_the_main_process_is(capsys):
    def main():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == 2 and "error: a process that reads images was ended by the signal Killed;" in (
        capsys.readouterr().err
    )


def test_slow_reading_is_warned_of_once(dataset, monkeypatch, capsys):
    monkeypatch.setattr("guided_diffusion.data.batches.SLOW_READING", 0.1)
    console()  # prints to what capsys reads
    threads = threading.active_count()

    def batches():
        time.sleep(0.3)
        yield 1
        yield 2

    reader = batches()
    with SlowReading(2) as reading:
        assert reading.next_of(reader) == 1
        time.sleep(0.2)  # the loop's own work
        assert reading.next_of(reader) == 2 and reading.next_of(reader) is None
        assert threading.active_count() == threads + 1
    assert capsys.readouterr().out.count("2 --num_workers read no batch in 0.1 s") == 1


ALONE = Processes(0, 1, torch.device("cpu"))


def epoch(selection, seed=0, number=0):
    keys = islice(TrainingOrder(selection, 1, seed), number * len(selection), (number + 1) * len(selection))
    return [index for ((index, _),) in keys]


def test_slices_all_nonempty_balanced(tmp_path, capsys):
    dataset = Stack(tmp_path, 8, need_masks=True)
    marked = {1, 2, 7}
    assert sorted(epoch(select_slices(dataset, "all", ALONE))) == list(range(9))
    assert sorted(epoch(select_slices(dataset, "nonempty", ALONE))) == sorted(marked)
    balanced = select_slices(dataset, "balanced", ALONE)
    assert "--slices balanced: 3 of 9 images with something marked, 6 without" in capsys.readouterr().out
    seen = set()
    for number in range(6):
        items = epoch(balanced, number=number)
        assert len(items) == 6 == len(set(items)) and marked < set(items)
        seen |= set(items)
    assert seen == set(range(9)) and epoch(balanced) == epoch(balanced) != epoch(balanced, number=1)


def test_balanced_where_most_slices_are_marked_and_where_all_or_none_are(tmp_path, monkeypatch):
    everywhere = {(v, k) for v in Stack.places for k in Stack.places[v]}
    monkeypatch.setattr(Stack, "marked", everywhere - {("a", 0)})
    dataset = Stack(tmp_path, 8, need_masks=True)
    assert sorted(epoch(select_slices(dataset, "balanced", ALONE)))[0] == 0
    assert len(select_slices(dataset, "balanced", ALONE)) == 2
    monkeypatch.setattr(Stack, "marked", everywhere)
    assert sorted(epoch(select_slices(dataset, "balanced", ALONE))) == list(range(9))
    monkeypatch.setattr(Stack, "marked", set())
    with pytest.raises(UserError, match="nothing is marked in any mask; --slices nonempty would leave nothing"):
        select_slices(dataset, "nonempty", ALONE)


def test_an_order_starts_at_any_step():
    selection = Selection(np.array([4, 5]), np.array([0, 1, 2, 3]))
    whole = list(islice(TrainingOrder(selection, 3, seed=1), 20))
    assert list(islice(TrainingOrder(selection, 3, seed=1, start_step=7), 13)) == whole[7:]
