"""The results' writer: slices become volumes in order, a unit is written when it is whole, unread truth is left out."""

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
from guided_diffusion.inference.writer import ReadableRaters, ResultWriter
from guided_diffusion.runtime.errors import UserError


class Written:
    """A results folder that remembers what it was asked to write."""

    def __init__(self):
        self.volumes, self.removed = {}, []

    def write_volume(self, name, maps, geometry, image_of, truth):
        self.volumes[name] = (maps, [float(image_of(k).min()) for k in range(maps.mask.shape[-1])], truth)

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
    options = build(SampleOptions, {"fuse": "mean", "symmetries": "none", "scales": "none", "coupling": "own", **flags})
    return ResultWriter(dataset, group_cases(dataset.cases), folder, options, read_raters=lambda *_: None)


def test_a_volume_is_written_when_its_last_slice_is_there(dataset):
    folder = Written()
    results = writer_of(dataset, folder)
    take_in(results, dataset, [0, 1], value=0.0)
    take_in(results, dataset, [2])
    assert folder.volumes == {}
    take_in(results, dataset, [3, 4])  # the last of a, the first of b
    assert list(folder.volumes) == ["a"]
    maps, images, truth = folder.volumes["a"]
    assert maps.mask.shape == (1, 8, 8, 4) and maps.mask.any(axis=(0, 1, 2)).tolist() == [False, False, True, True]
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
    with pytest.raises(UserError, match="volume a has the shape 8x9x4, its slices make 8x8x4; correct geometry"):
        take_in(results, dataset, [0, 1, 2, 3])
