"""Which part of the data a data set's cases are: the data's own parts, or those that a `HoldOut` makes of them."""

import copy

from ..runtime.console import counted
from ..runtime.errors import NoSplitError, UserError
from .cases import group_cases, same_cases


def find_held_out(dataset, hold_out):
    """The cases of `dataset.split` where `hold_out` divides the training cases; adds a note.

    Raises `UserError` where the data have a part of their own in place of one that is to be held out.
    """
    own_val = [case for case in dataset.find_split("val") if case.masks]
    if own_val and hold_out.validates:
        raise UserError(f"{dataset.data_dir}: has validation cases of its own; leave out {hold_out.validation_flag}")
    training, tests = dataset.find_split("train"), []
    if dataset.split == "test" or hold_out.test_fraction:
        tests = _own_tests(dataset, training, own_val)
    if hold_out.test_fraction:
        if any(case.masks for case in tests):
            raise UserError(f"{dataset.data_dir}: has test cases of its own; leave out --test_fraction")
        tests = []  # without truth they can wait: the cases kept for testing have some
    if dataset.split == "test" and tests:
        return tests
    if not training:
        return []
    parts = hold_out.divide(training)
    held = [
        (len(group_cases(parts[name])), what)
        for name, what in (("val", "validation"), ("test", "testing"))
        if parts[name]
    ]
    counts = " and ".join(f"{count} for {what}" for count, what in held)
    are = "is" if sum(count for count, _ in held) == 1 else "are"
    dataset.notes = (
        *dataset.notes,
        f"{hold_out.flags}: of {counted(len(group_cases(training)), 'case')}, {counts} {are} held out of training",
    )
    if dataset.split == "val" and own_val:
        return own_val
    return parts[dataset.split] or parts["val"]


def part_of(dataset):
    """The part that a data set's cases are: "train", "val", "test", or "all" for undivided data.

    It differs from `split` where the data have no test cases: those of validation, or all, then stand for them.
    """
    if dataset.split != "test":
        return dataset.split or "all"
    probe = copy.copy(dataset)  # finding cases changes attributes such as notes and the reader of volumes
    training, own_val = _find_if_there(probe, "train"), _find_if_there(probe, "val")
    if dataset.hold_out is not None:
        is_own = dataset.hold_out.test_fraction or _own_tests(probe, training, own_val)
        return "test" if is_own else "val"
    if same_cases(dataset.cases, training):
        return "all"
    return "val" if same_cases(dataset.cases, own_val) else "test"


def _own_tests(dataset, training, own_val):
    """The data's own test cases: [] where its other cases stand for them."""
    tests = _find_if_there(dataset, "test")
    return [] if same_cases(tests, training) or same_cases(tests, own_val) else tests


def _find_if_there(dataset, split):
    """The cases of a split; [] if the folder holds other splits only."""
    try:
        return dataset.find_split(split)
    except NoSplitError:
        return []
