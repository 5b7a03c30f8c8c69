"""What is shown of a case: neighbouring slices, sizes that are kept, crops; and which items are trained on."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import LOADER

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.data.batches import Selection, TrainingItems, TrainingOrder, select_slices
from guided_diffusion.data.cases import Case
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.resizing import View, at_least, crop
from guided_diffusion.runtime.distributed import Processes
from guided_diffusion.runtime.errors import UserError

ALONE = Processes(0, 1, torch.device("cpu"))


class Stack(SegmentationDataset):
    """Slices [2, 8, 8] of two volumes whose values tell volume, slice and channel; slice 3 of b is missing."""

    image_channels = 2
    places = {"a": range(4), "b": (0, 1, 2, 4, 5)}
    marked = {("a", 1), ("a", 2), ("b", 4)}

    def find_cases(self):
        path = self.data_dir / "f"
        return [Case(f"{v}{k}", (path,), (path,), volume=v, slice_index=k) for v in self.places for k in self.places[v]]

    def read_image(self, case):
        value = 100 * (case.volume == "b") + 10 * case.slice_index
        return np.stack([np.full((8, 8), value + channel) for channel in range(2)])

    def read_mask(self, case):
        mask = np.zeros((1, 1, 8, 8), bool)
        mask[..., 2, 3] = (case.volume, case.slice_index) in self.marked
        return mask

    def normalise(self, image):
        return image


# ---- sizes and crops ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, size, expected", [((5, 9), 8, (8, 9)), ((3, 2), 8, (8, 8)), ((9, 9), 8, (9, 9))])
def test_a_short_side_is_filled_up_by_its_reflection(shape, size, expected):
    values = torch.arange(shape[0] * shape[1]).reshape(1, *shape)
    filled = at_least(values, size)
    pads = [(0, max(0, size - n)) for n in shape]
    assert filled.shape[-2:] == expected
    np.testing.assert_array_equal(filled[0], np.pad(values[0].numpy(), pads, mode="symmetric"))


def item_of(height, width, marked=()):
    """An item whose two channels are the rows and columns, and whose second rater marked these pixels."""
    image = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()
    mask = torch.zeros(2, 1, height, width)
    for pixel in marked:
        mask[(1, 0, *pixel)] = 1
    return {"image": image, "mask": mask, "name": "c"}


def corner_of(item):
    return tuple(item["image"][:, 0, 0].int().tolist())


def test_a_crop_is_one_square_of_image_and_masks():
    item = item_of(20, 31, marked=[(3, 4), (12, 30), (19, 0)])
    corners = Counter()
    for position in range(400):
        cut = crop(item, 8, 0, position)
        row, column = corner_of(cut)
        window = (..., slice(row, row + 8), slice(column, column + 8))
        assert torch.equal(cut["image"], item["image"][window]) and torch.equal(cut["mask"], item["mask"][window])
        assert cut["image"].shape == (2, 8, 8) and cut["name"] == "c"
        corners[row, column] += 1
    rows, columns = ({corner[axis] for corner in corners} for axis in (0, 1))
    assert rows == set(range(13)) and columns == set(range(24))
    assert crop(item_of(8, 8), 8, 0, 5)["image"].shape == (2, 8, 8)


def test_a_third_of_the_crops_hold_something_marked():
    item = item_of(80, 80, marked=[(0, 79)])
    held = [bool(crop(item, 8, 0, position)["mask"].any()) for position in range(600)]
    assert 0.27 < np.mean(held) < 0.41
    assert {corner_of(crop(item, 8, 0, p)) for p in range(600) if held[p]} == {(0, 72)}


def test_a_crop_follows_from_seed_and_position_alone():
    item = item_of(40, 40)
    expected = corner_of(crop(item, 8, 1, 7))
    torch.rand(3)
    assert corner_of(crop(item, 8, 1, 7)) == expected
    assert len({corner_of(crop(item, 8, seed, p)) for seed in range(2) for p in range(4)}) > 5


def test_training_items_are_cut_then_augmented(pictures):
    keeping = build_dataset("FOLDER", pictures, 16, need_masks=True, view=View(keep_size=True))
    assert keeping[0]["image"].shape == (3, 32, 40) and keeping[0]["mask"].shape == (1, 1, 32, 40)
    plain, changed = TrainingItems(keeping, "none", 3), TrainingItems(keeping, "light", 3)
    assert plain[0, 5]["image"].shape == changed[0, 5]["image"].shape == (3, 16, 16)
    assert torch.equal(plain[0, 5]["image"], crop(keeping[0], 16, 3, 5)["image"])
    assert not torch.equal(plain[0, 5]["image"], changed[0, 5]["image"])
    resized = build_dataset("FOLDER", pictures, 48, need_masks=True, view=View(keep_size=True))
    assert torch.equal(resized[1]["image"], build_dataset("FOLDER", pictures, 48)[1]["image"])


# ---- which slices ------------------------------------------------------------------------------------------------


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


def test_training_on_nonempty_slices_alone(train, brats, capsys, sample):
    path = train("BRATS", brats, "--slices nonempty")
    assert "--slices nonempty: " in capsys.readouterr().out
    assert load_checkpoint(path).config["train"]["slices"] == "nonempty"


def test_a_loader_of_ones_own_knows_nothing_of_it(tmp_path, save_picture):
    (tmp_path / "mine.py").write_text(LOADER)
    for name in ("photo", "truth"):
        save_picture(tmp_path / "data" / "p1" / f"{name}.png", np.full((24, 40, 3), 255, np.uint8))
    dataset = build_dataset(f"{tmp_path}/mine.py:Polyps", tmp_path / "data", 16, view=View(keep_size=True))
    assert dataset[0]["image"].shape == (3, 24, 40)
