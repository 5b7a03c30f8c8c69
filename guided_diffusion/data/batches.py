"""Batches from a data set: the order of training, and the processes that read images beside the network."""

import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from ..runtime.console import console, counted
from ..runtime.errors import UserError, reason_of
from .resizing import crop

# ---- Which items an epoch of training has: all, only those with something marked, or as many with as without --------


@dataclass(frozen=True)
class Selection:
    """The items of an epoch, by index: each of `whole` once and as many of `drawn`, chosen anew for each epoch."""

    whole: np.ndarray
    drawn: np.ndarray = ()

    @classmethod
    def of_all(cls, length):
        """All of so many items."""
        return cls(np.arange(length))

    def __len__(self):
        return len(self.whole) * (2 if len(self.drawn) else 1)

    def shuffled(self, rng):
        """The indices of an epoch in an order drawn by a NumPy generator."""
        chosen = self.whole
        if len(self.drawn):
            chosen = np.concatenate([chosen, rng.choice(self.drawn, len(chosen), replace=False)])
        return chosen[rng.permutation(len(chosen))]


def select_slices(dataset, slices, processes):
    """The `Selection` that `--slices` asks for of a data set with masks: all, nonempty or balanced.

    Whether an item has anything marked, by any rater and of any class, is looked up once, with a bar, by the first of
    the `dist_util.Processes`. Raises `UserError` where nothing is marked anywhere.
    """
    if slices == "all":
        return Selection.of_all(len(dataset))
    marked = np.array(processes.from_first(lambda: _look(dataset)))
    full, empty = np.flatnonzero(marked), np.flatnonzero(~marked)
    if not len(full):
        raise UserError(f"{dataset.data_dir}: nothing is marked in any mask; --slices {slices} would leave nothing")
    console().info(
        f"--slices {slices}: {len(full)} of {counted(len(marked), 'image')} with something marked, {len(empty)} without"
    )
    if slices == "nonempty" or not len(empty):
        return Selection(full)
    return Selection(*sorted((full, empty), key=len))


def _look(dataset):
    cases = tqdm(dataset.cases, desc="looking for marked slices", unit="image", dynamic_ncols=True)
    return [bool(dataset.load_mask(case).any()) for case in cases]


def collate(items):
    """Stack a list of items into a batch: tensors are stacked, everything else becomes a list.

    A key that not every item has (some cases have a label, some none) is an error of the data set.
    """
    keys = items[0].keys()
    for item in items:
        if item.keys() != keys:
            odd = sorted(item.keys() ^ keys)
            raise UserError(f"case {item['name']}: differs from {items[0]['name']} in having {', '.join(odd)}")
    batch = {key: [item[key] for item in items] for key in keys}
    for key in ("image", "mask"):
        if key in batch:
            batch[key] = torch.stack(batch[key])
    if "label" in batch:
        batch["label"] = torch.tensor(batch["label"])
    return batch


class TrainingOrder(Sampler):
    """Endless batches of keys (index, position) that depend only on (seed, step): position p of the run is item
    p mod N of a permutation drawn for epoch p div N, so a run that starts at any step sees what an uninterrupted one
    would. What is drawn for an item follows from its position (see `TrainingItems`).

    selection: the `Selection` of the items that an epoch has. share: the slice of each batch that is yielded, of the
    process that reads it.
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
    """The items of `dataset` by the keys of `TrainingOrder`, (index, position), cut to the network's size, augmented.

    What is drawn follows from (seed, position) alone. augment: none, light or strong, see
    `augment.build_augmentation`; none hands the items on as they are.
    """

    def __init__(self, dataset, augment, seed):
        self.dataset, self.augment, self.seed = dataset, None, seed
        if augment != "none":
            from .augment import Augmentation  # torchvision takes a second to import, which others need not wait for

            self.augment = Augmentation(augment, dataset, seed)

    def __len__(self):
        return len(self.dataset)

    def load_shared(self):
        """See `data.SegmentationDataset.preload`."""
        self.dataset.load_shared()

    def __getitem__(self, key):
        index, position = key
        item = self.dataset.load_item(index)
        if self.dataset.view.keep_size:
            item = crop(item, self.dataset.image_size, self.seed, position)
        return item if self.augment is None else self.augment(item, position)


def training_batches(
    dataset, batch_size, *, seed, start_step=0, num_workers=0, augment="none", share=slice(None), selection=None
):
    """Return an endless iterator over training batches, which (seed, step) alone decide.

    augment: none, light or strong (see `TrainingItems`). share: the slice of each batch that this process reads.
    selection: the `Selection` of the items that are trained on; None: all.
    """
    order = TrainingOrder(selection or Selection.of_all(len(dataset)), batch_size, seed, start_step, share)
    items = TrainingItems(dataset, augment, seed)
    return iter(_loader(items, num_workers, batch_sampler=order))


def sampling_batches(dataset, batches, *, num_workers=0):
    """Return a DataLoader over these batches, lists of indices, in their order."""
    return _loader(dataset, num_workers, batch_sampler=batches)


class Unread(NamedTuple):
    """Stands for the item `index`, which cannot be read, and says why in one line."""

    index: int
    why: str


class ReadableItems(Dataset):
    """The items of `dataset`, an `Unread` in the place of one that cannot be read. Of a volume that holds for all
    slices after such a one: the same files would be decoded in vain."""

    def __init__(self, dataset):
        self.dataset, self.unread = dataset, {}

    def __len__(self):
        return len(self.dataset)

    def load_shared(self):
        """See `data.SegmentationDataset.preload`."""
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
    """(the batch of those items that are none of `Unread`, or None without any; a list of the others)."""
    readable = [item for item in items if not isinstance(item, Unread)]
    return collate(readable) if readable else None, [item for item in items if isinstance(item, Unread)]


def readable_batches(dataset, batches, *, num_workers=0):
    """`sampling_batches` of what can be read, as `collate_readable` gives them; an image that cannot ends nothing."""
    return _loader(ReadableItems(dataset), num_workers, batch_sampler=batches, collate_fn=collate_readable)


def looking_batches(items, num_workers=0):
    """The items of any dataset, which need not be tensors, in their order, one by one."""
    return _loader(items, num_workers, collate_fn=lambda one: one[0])


class _Batches(DataLoader):
    """A DataLoader that raises its workers' `UserError`s as they were: one line, without the worker's traceback."""

    def __iter__(self):
        try:
            yield from super().__iter__()
        except (UserError, OSError) as error:
            traceback.clear_frames(error.__traceback__)  # lets go of the workers, or each takes 5 s to end
            if isinstance(error, OSError):
                raise
            line = str(error).strip().splitlines()[-1]
            raise UserError(line.removeprefix(f"{UserError.__module__}.{UserError.__qualname__}: ")) from None


def _loader(dataset, num_workers, **keywords):
    # Workers decode images; one thread each is enough and leaves the cores to the network. They are forked where
    # that is possible, since a class that came from a file (`path.py:Class`) cannot be sent to a fresh process.
    if hasattr(os, "sched_getaffinity"):  # more than the cores would only get in each other's way
        num_workers = min(num_workers, len(os.sched_getaffinity(0)))
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
    torch.set_num_threads(1)
    # Ctrl-C, and the SIGTERM of a job scheduler, reach the workers too. They live on, or the main process could not
    # finish its step and write a checkpoint; it ends them itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
