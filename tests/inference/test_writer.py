"""The results' writer: slices become volumes in order, a unit is written when it is whole, unread truth is left out."""

import errno
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import Stack

from guided_diffusion.config.fields import build
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.data.cases import Geometry, group_cases
from guided_diffusion.inference import writer
from guided_diffusion.inference.members import Members
from guided_diffusion.inference.plan import SamplingPlan
from guided_diffusion.inference.writer import ReadableRaters, ResultWriter
from guided_diffusion.runtime.errors import UserError


class Slices:
    """The masks of a volume's slices, as `VolumeFiles` keeps them."""

    def __init__(self, name, depth):
        self.name, self.depth, self.masks = name, depth, np.zeros((0, 1, 8, 8), bool)

    @property
    def is_whole(self):
        return len(self.masks) == self.depth

    def add(self, maps):
        self.masks = np.concatenate([self.masks, maps.mask[None]])

    def close(self):
        pass


class Written:
    """A results folder that remembers what it was asked to write."""

    def __init__(self):
        self.volumes, self.removed = {}, []

    def begin_volume(self, name, geometry, depth, clean=None):
        return Slices(name, depth)

    def finish_volume(self, files, image_of, truth):
        self.volumes[files.name] = (files.masks, [float(image_of(k).min()) for k in range(files.depth)], truth)

    def remove_debug(self, names):
        self.removed += names


@pytest.fixture
def dataset(tmp_path):
    made = Stack(tmp_path, 8, need_masks=False)
    made.load_geometry = lambda case: None
    return made


def take_in(results, dataset, indices, value=1.0):
    """Give the writer a batch of these slices; every member of slice k is full where value is 1."""
    members = torch.full((2, len(indices), 1, 8, 8), value)
    results.write(indices, {"size": [(8, 8)] * len(indices)}, Members(members, None), None)


def writer_of(dataset, folder, **flags):
    options = build(SampleOptions, {"num_ensemble": 2, **flags})
    plan = SamplingPlan("bernoulli", (9, 0), fuse="mean")
    return ResultWriter(dataset, group_cases(dataset.cases), folder, options, plan, read_raters=lambda *_: None)


def test_a_volume_is_written_when_its_last_slice_is_there(dataset):
    folder = Written()
    results = writer_of(dataset, folder)
    take_in(results, dataset, [0, 1], value=0.0)
    take_in(results, dataset, [2])
    assert folder.volumes == {}
    take_in(results, dataset, [3, 4])  # the last of a, the first of b
    assert list(folder.volumes) == ["a"]
    masks, images, truth = folder.volumes["a"]
    assert masks.shape == (4, 1, 8, 8) and masks.any(axis=(1, 2, 3)).tolist() == [False, False, True, True]
    assert images == [0, 10, 20, 30] and truth is None


def test_empty_masks_are_counted(dataset):
    results = writer_of(dataset, Written())
    take_in(results, dataset, range(4), value=0.0)
    take_in(results, dataset, range(4, 9))
    assert results.empty == 1


def test_what_is_left_out_is_forgotten(dataset):
    folder = Written()
    results = writer_of(dataset, folder)
    take_in(results, dataset, [0, 1, 2])
    results.leave_out(results.units[0])
    take_in(results, dataset, [3])
    assert folder.volumes == {} and folder.removed == []


def test_truth_that_cannot_be_read_is_warned_of_once(monkeypatch, capsys):
    def fail(dataset, cases, k=0):
        raise UserError("mask.png: is truncated or damaged")

    monkeypatch.setattr(writer, "raters_of", fail)
    case, raters = SimpleNamespace(name="c1", masks=("mask.png",)), ReadableRaters()
    assert raters(None, [case]) is None and raters(None, [case]) is None
    assert capsys.readouterr().out.count("c1: goes on without its truth: mask.png: is truncated") == 1


def test_a_geometry_of_another_shape_is_refused(dataset):
    dataset.load_geometry = lambda case: Geometry(np.eye(4).tolist(), (), (8, 9, 4))
    results = writer_of(dataset, Written())
    take_in(results, dataset, [0, 1, 2, 3])
    (why,) = results.failed.values()
    assert "volume a has the shape 8x9x4, its slices make 8x8x4; correct geometry" in why


def test_a_unit_that_cannot_be_written_does_not_cost_the_others(dataset, monkeypatch, capsys):
    folder = Written()
    finish = folder.finish_volume

    def fails(files, *rest):
        if files.name == "a":
            raise OSError(errno.EISDIR, "Is a directory", "a_seg.nii.gz")
        finish(files, *rest)

    monkeypatch.setattr(folder, "finish_volume", fails)
    results = writer_of(dataset, folder)
    take_in(results, dataset, range(4))
    take_in(results, dataset, range(4, 9))
    assert list(folder.volumes) == ["b"] and results.empty == 0
    assert {unit.name: why for unit, why in results.failed.items()} == {"a": "a_seg.nii.gz: Is a directory"}


def test_a_full_disk_ends_the_run(dataset, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "a_seg.nii.gz")

    folder = Written()
    monkeypatch.setattr(folder, "finish_volume", fails)
    with pytest.raises(OSError, match="No space"):
        take_in(writer_of(dataset, folder), dataset, range(4))
