"""Batches from a data set: the order of training items, and the processes that read images."""

import multiprocessing.queues
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from ..runtime.console import console, counted
from ..runtime.errors import SHARED_MEMORY_FULL, UNSENT, UserError, lost_worker_message, reason_of
from ..runtime.threads import usable_cores
from .crops import TrainingCrops

SLOW_READING = 60  # seconds without a batch, after which a warning says so

PARENT_CHECKED = 2  # seconds between two looks of a worker, which a hanging disk may hold, for the main process

# ---- the items of an epoch ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """The indices of an epoch's items: all of `whole`, and as many of `drawn`, chosen anew in each epoch."""

    whole: np.ndarray
    drawn: np.ndarray = ()

    @classmethod
    def of_all(cls, length):
        """All items of a data set of this length."""
        return cls(np.arange(length))

    def __len__(self):
        return len(self.whole) * (2 if len(self.drawn) else 1)

    def shuffled(self, rng):
        """The indices of an epoch in random order. rng: a NumPy generator."""
        chosen = self.whole
        if len(self.drawn):
            chosen = np.concatenate([chosen, rng.choice(self.drawn, len(chosen), replace=False)])
        return chosen[rng.permutation(len(chosen))]


def select_slices(dataset, slices, processes):
    """The `Selection` of `--slices`: "all", "nonempty" (only items with something marked) or "balanced" (as many with
    as without).

    The first of the `distributed.Processes` reads all masks once, with a progress bar. Any rater and any class counts.
    Raises `UserError` if nothing is marked anywhere.
    """
    if slices == "all":
        return Selection.of_all(len(dataset))
    marked = np.array(processes.from_first(lambda: _marked(dataset)))
    full, empty = np.flatnonzero(marked), np.flatnonzero(~marked)
    if not len(full):
        raise UserError(f"{dataset.data_dir}: nothing is marked in any mask; --slices {slices} would leave nothing")
    console().info(
        f"--slices {slices}: {len(full)} of {counted(len(marked), 'image')} with something marked, {len(empty)} without"
    )
    if slices == "nonempty" or not len(empty):
        return Selection(full)
    return Selection(*sorted((full, empty), key=len))


def _marked(dataset):
    """For each case, whether anything is marked."""
    cases = tqdm(dataset.cases, desc="looking for marked slices", unit="image", dynamic_ncols=True)
    return [bool(dataset.load_mask(case).any()) for case in cases]


def collate(items):
    """Make a batch of a list of items: images, masks and labels become tensors [B, ...], everything else lists.

    Raises `UserError` for a key that only some items have, such as a label, and for images or masks of other shapes.
    """
    keys = items[0].keys()
    for item in items:
        if item.keys() != keys:
            odd = sorted(item.keys() ^ keys)
            raise UserError(f"case {item['name']}: differs from {items[0]['name']} in having {', '.join(odd)}")
    batch = {key: [item[key] for item in items] for key in keys}
    for key in ("image", "mask", "known"):
        if key in batch:
            odd = next((item for item in items if item[key].shape != items[0][key].shape), items[0])
            if odd is not items[0]:
                shapes = [list(item[key].shape) for item in (odd, items[0])]
                raise UserError(
                    f"case {odd['name']}: its {key} has the shape {shapes[0]}, that of {items[0]['name']} {shapes[1]}; "
                    "all must have as many channels, raters and classes"
                )
            batch[key] = torch.stack(batch[key])
    if "label" in batch:
        batch["label"] = torch.tensor(batch["label"])
    return batch


class TrainingOrder(Sampler):
    """Endless batches of keys (index, position), which depend on (seed, step) alone, so that a resumed run sees what an
    uninterrupted one would.

    Position p of the run is item p mod N of a permutation drawn for epoch p div N. See `TrainingItems` for the use of
    the position.
    selection: the items of an epoch. share: the slice of each batch that this process reads.
    """

    def __init__(self, selection, batch_size, seed, start_step=0, share=slice(None)):
        self.selection, self.batch_size, self.seed, self.start_step = selection, batch_size, seed, start_step
        self.share = share

    def __iter__(self):
        epoch, order = -1, None
        length, position = len(self.selection), self.start_step * self.batch_size
        while True:
            batch = []
            for _ in range(self.batch_size):
                if position // length != epoch:
                    epoch = position // length
                    order = self.selection.shuffled(np.random.default_rng([self.seed, epoch]))
                batch.append((int(order[position % length]), position))
                position += 1
            yield batch[self.share]


class TrainingItems(Dataset):
    """The items of a data set by the keys (index, position) of `TrainingOrder`, cropped and augmented.

    (seed, position) alone decide on crop and augmentation. augment: "none", "light" or "strong", see `augment`.
    crop_foreground: see `TrainingCrops`.
    """

    def __init__(self, dataset, augment, seed, crop_foreground="class"):
        self.dataset, self.augment = dataset, None
        self.crops = TrainingCrops(dataset, seed, crop_foreground) if dataset.view.keep_size else None
        if augment != "none":
            from .augment import Augmentation  # torchvision takes a second to import

            self.augment = Augmentation(augment, dataset, seed)

    def __len__(self):
        return len(self.dataset)

    def load_shared(self):
        """See `SegmentationDataset.preload`."""
        self.dataset.load_shared()

    def __getitem__(self, key):
        index, position = key
        item = self.dataset.load_item(index) if self.crops is None else self.crops.load(index, position)
        return item if self.augment is None else self.augment(item, position)


def training_batches(
    dataset,
    batch_size,
    *,
    seed,
    start_step=0,
    num_workers=0,
    augment="none",
    share=slice(None),
    selection=None,
    crop_foreground="class",
):
    """Return an endless iterator over training batches (see `collate`), which depend on (seed, step) alone.

    augment, crop_foreground: see `TrainingItems`. share: see `TrainingOrder`. selection: a `Selection`; None: all.
    """
    order = TrainingOrder(selection or Selection.of_all(len(dataset)), batch_size, seed, start_step, share)
    items = TrainingItems(dataset, augment, seed, crop_foreground)
    return iter(_loader(items, num_workers, batch_sampler=order))


def sampling_batches(dataset, batches, *, num_workers=0):
    """Return a DataLoader over batches in this order. batches: lists of indices."""
    return _loader(dataset, num_workers, batch_sampler=batches)


class Unread(NamedTuple):
    """Replaces the item `index`, which cannot be read. why: the message, one line."""

    index: int
    why: str


class ReadableItems(Dataset):
    """The items of a data set, with an `Unread` in place of each that cannot be read.

    After a slice that cannot be read all later slices of its volume are `Unread` too: they come from the same files.
    """

    def __init__(self, dataset):
        self.dataset, self.unread = dataset, {}

    def __len__(self):
        return len(self.dataset)

    def load_shared(self):
        """See `SegmentationDataset.preload`."""
        self.dataset.load_shared()

    def __getitem__(self, index):
        volume = self.dataset.cases[index].volume
        if volume in self.unread:
            return Unread(index, self.unread[volume])
        try:
            return self.dataset.load_item(index)
        except (UserError, OSError) as error:
            if volume is not None:
                self.unread[volume] = reason_of(error)
            return Unread(index, reason_of(error))


def collate_readable(items):
    """(the batch of the items that were read, None if there are none; the list of the `Unread`)."""
    readable = [item for item in items if not isinstance(item, Unread)]
    return collate(readable) if readable else None, [item for item in items if isinstance(item, Unread)]


def readable_batches(dataset, batches, *, num_workers=0):
    """`sampling_batches` as pairs (batch or None, list of `Unread`): an unreadable image does not end the loop."""
    return _loader(ReadableItems(dataset), num_workers, batch_sampler=batches, collate_fn=collate_readable)


def single_items(items, num_workers=0):
    """A DataLoader over the items of any dataset, one by one and in order; they need not be tensors."""
    return _loader(items, num_workers, collate_fn=lambda one: one[0])


class _Batches(DataLoader):
    """A DataLoader whose workers' errors are one line, without the worker's traceback.

    Raises the `UserError` or `OSError` of a worker, and a `UserError` for a worker that was lost.
    """

    def __iter__(self):
        if self.num_workers:
            _check_shared_memory()
        batches = super().__iter__()
        try:
            with SlowReading(self.num_workers) as reading:
                while (batch := reading.next_of(batches)) is not None:
                    yield batch
        except (UserError, OSError, EOFError, RuntimeError) as error:
            try:
                with _child_signals_off():
                    lost = _lost(batches, error)
            except RuntimeError as ended:  # torch's signal of a worker's end came before the signals were off
                with _child_signals_off():
                    lost = _lost(batches, ended)
            with _child_signals_off():
                batches = None
                if lost is None and not isinstance(error, (UserError, OSError)):
                    raise
                traceback.clear_frames(error.__traceback__)  # the frames keep the workers alive: each takes 5 s to end
                if lost is None and isinstance(error, OSError):
                    raise
                line = lost or str(error).strip().splitlines()[-1]
                raise UserError(line.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")) from None


def _check_shared_memory():
    """Raise `UserError` where this process cannot make what it shares with processes that read images."""
    try:
        multiprocessing.Lock()  # torch's own attempt would end with a traceback
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"/dev/shm: cannot be used by processes that read images ({reason}); make room there, or allow writing, or "
            "use --num_workers 0"
        ) from error


def _lost(batches, error):
    """The line on the worker that was lost; None if none was."""
    return lost_worker_message(_first_lost(batches, error) or str(error))


@contextmanager
def _child_signals_off():
    """A context in which torch raises no error when a worker ends: its loop is being left because of an error."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)


def _first_lost(batches, error):
    """What torch says of a lost worker, with the signal or exit status of the first one; "" if all are well.

    Torch's own error lacks them where the main process was waiting. It has another `error` where the main process was
    just reading from a worker that ended, which may not be over yet.
    """
    workers = getattr(batches, "_workers", ())
    until = time.monotonic() + (1 if isinstance(error, (ConnectionError, EOFError)) else 0)
    while not _dead(workers) and time.monotonic() < until:
        time.sleep(0.02)
    for worker in _dead(workers):
        code = worker.exitcode
        how = f"exited with exit code {code}" if code > 0 else f"is killed by signal: {signal.strsignal(-code)}"
        return f"DataLoader worker {how}"
    return ""


def _dead(workers):
    return [worker for worker in workers if not worker.is_alive() and worker.exitcode]


class SlowReading:
    """A context of a loop over batches that warns of each batch which takes longer than `SLOW_READING` seconds.

    One thread watches the loop: a timer for each batch took a tenth of the time of reading small pictures.
    """

    def __init__(self, num_workers):
        who = f"{num_workers} --num_workers" if num_workers else "this process"
        self.text = f"warning: {who} read no batch in {SLOW_READING} s: the images are large, or their disk hangs"
        self.begun = None  # when the batch that is being read was begun
        self.ended = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.ended.set()

    def next_of(self, batches):
        """The next batch; None after the last."""
        self.begun = time.monotonic()
        try:
            return next(batches, None)
        finally:
            self.begun = None

    def _watch(self):
        warned = None
        while not self.ended.wait(SLOW_READING / 20):
            begun = self.begun
            if begun not in (None, warned) and time.monotonic() - begun > SLOW_READING:
                console().warning(self.text)
                warned = begun


def _loader(dataset, num_workers, **keywords):
    # Workers are forked if possible, since a class from a user's file (`path.py:Class`) cannot be pickled for a fresh
    # process.
    num_workers = min(num_workers, usable_cores())  # more of them only slow each other down
    forked = num_workers > 0 and sys.platform == "linux"
    if forked:
        dataset.load_shared()
    keywords = {"collate_fn": collate, **keywords}
    return _Batches(
        dataset,
        num_workers=num_workers,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if forked else None,
        **keywords,
    )


def _start_worker(_worker):
    torch.set_num_threads(1)  # enough to decode images, and leaves the cores to the network
    # By default the thread that sends batches drops one that it cannot send, and the main process waits for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_unsent)
    sys.excepthook = _main_process_left
    # Ctrl-C, and the SIGTERM of a job scheduler, reach the workers too. They ignore both, so that the main process can
    # finish its step and write a checkpoint. It ends the workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _end_unsent(error, _batch):
    """End the worker whose batch cannot be sent, with the status from which `lost_worker_message` knows the cause."""
    is_full = "shared memory" in str(error) or "No space left" in str(error)
    os._exit(SHARED_MEMORY_FULL if is_full else UNSENT)


def _main_process_left(kind, error, where):
    """Print an error of a worker's thread, unless it is that the main process broke off fetching a batch.

    Ctrl-C does that. The thread that hands out batches would print a traceback then.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, where)


def _end_with_parent(parent):
    """Exit on a SIGTERM from the main process `parent`, but from no other, and once that process has ended."""
    while os.getppid() == parent:
        found = signal.sigtimedwait({signal.SIGTERM}, PARENT_CHECKED)
        if found is not None and found.si_pid == parent:
            break
    os._exit(0)
