"""Crops: one window of image and masks, and foreground often enough: in batches, of rare classes, in volumes."""

from collections import Counter
from dataclasses import asdict
from itertools import islice

import numpy as np
import pytest
import torch
from helpers import TRAIN
from networks import Stack

from guided_diffusion.checkpoint_schema import OLDER
from guided_diffusion.config.command_line import parse
from guided_diffusion.config.settings import Saved, settle
from guided_diffusion.data.batches import TrainingItems, training_batches
from guided_diffusion.data.cases import Case
from guided_diffusion.data.crops import crop
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.resizing import View
from guided_diffusion.runtime.errors import UserError

KEEPING = {"need_masks": True, "view": View(keep_size=True)}


def item_of(height, width, marked=()):
    """An item whose two channels are the rows and columns, and whose second rater marked these pixels."""
    image = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()
    mask = torch.zeros(2, 1, height, width)
    for pixel in marked:
        mask[(1, 0, *pixel)] = 1
    return {"image": image, "mask": mask, "name": "c"}


def corner_of(item):
    return tuple(item["image"][:, 0, 0].int().tolist())


class Pictures(SegmentationDataset):
    """Pictures of 40 pixels with the channels of `item_of`. `drawn`: {name: mask [R, K, 40, 40]}."""

    image_channels = 2
    class_names = ("large", "rare")
    volume_of = {}
    reads = ()

    def find_cases(self):
        path = (self.data_dir / "f",)
        return [
            Case(name, path, path, volume=self.volume_of.get(name), slice_index=number if self.volume_of else None)
            for number, name in enumerate(self.drawn)
        ]

    def read_image(self, case):
        return item_of(40, 40)["image"].numpy()

    def read_mask(self, case):
        return self.drawn[case.name]

    def normalise(self, image):
        return image


def pictures_of(tmp_path, drawn, **attributes):
    return type("Made", (Pictures,), {"drawn": drawn, **attributes})(tmp_path, 8, **KEEPING)


def drawn(raters=1, **rectangles):
    """A mask [R, 2, 40, 40] with one rectangle for each class, of the first rater: name = (rows, columns)."""
    mask = np.zeros((raters, 2, 40, 40), bool)
    for k, name in enumerate(Pictures.class_names):
        if name in rectangles:
            mask[(0, k, *(slice(*ends) for ends in rectangles[name]))] = True
    return mask


LARGE, RARE = ((0, 20), (0, 40)), ((37, 38), (2, 3))  # 800 pixels, and one

# ---- one window ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("about", ["class", "known"])
def test_a_crop_is_one_square_of_image_and_masks(about):
    item = item_of(20, 31, marked=[(3, 4), (12, 30), (19, 0)])
    corners = Counter()
    for position in range(600):
        cut = crop(item, 8, 0, position, about)
        row, column = corner_of(cut)
        window = (..., slice(row, row + 8), slice(column, column + 8))
        assert torch.equal(cut["image"], item["image"][window]) and torch.equal(cut["mask"], item["mask"][window])
        assert cut["image"].shape == (2, 8, 8) and cut["name"] == "c"
        assert about == "known" or cut["mask"].any()
        corners[row, column] += 1
    if about == "known":
        rows, columns = ({corner[axis] for corner in corners} for axis in (0, 1))
        assert rows == set(range(13)) and columns == set(range(24))
    assert crop(item_of(8, 8), 8, 0, 5)["image"].shape == (2, 8, 8)


def test_every_place_that_holds_the_pixel_is_possible_and_none_beyond_the_border():
    item = item_of(40, 40, marked=[(20, 39)])
    corners = {corner_of(crop(item, 4, 0, position)) for position in range(60)}
    assert corners == {(row, 36) for row in range(17, 21)}


def test_a_crop_follows_from_seed_and_position_alone():
    item = item_of(40, 40)
    expected = corner_of(crop(item, 8, 1, 7))
    torch.rand(3)
    assert corner_of(crop(item, 8, 1, 7)) == expected
    assert len({corner_of(crop(item, 8, seed, p)) for seed in range(2) for p in range(4)}) > 5


def test_training_items_are_cut_then_augmented(pictures):
    keeping = build_dataset("FOLDER", pictures, 16, **KEEPING)
    assert keeping[0]["image"].shape == (3, 32, 40) and keeping[0]["mask"].shape == (1, 1, 32, 40)
    plain, changed = TrainingItems(keeping, "none", 3), TrainingItems(keeping, "light", 3)
    assert plain[0, 5]["image"].shape == changed[0, 5]["image"].shape == (3, 16, 16)
    assert torch.equal(plain[0, 5]["image"], crop(keeping[0], 16, 3, 5)["image"])
    assert not torch.equal(plain[0, 5]["image"], changed[0, 5]["image"])
    resized = build_dataset("FOLDER", pictures, 48, **KEEPING)
    assert torch.equal(resized[1]["image"], build_dataset("FOLDER", pictures, 48)[1]["image"])
    assert torch.equal(TrainingItems(resized, "none", 3)[1, 5]["image"], resized[1]["image"])


# ---- how often -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_every_batch_has_its_third_of_foreground(tmp_path, batch_size):
    """Of pixels so few that chance hits none of them in these batches."""
    dataset = pictures_of(tmp_path, {f"p{i}": drawn(rare=RARE) for i in range(7)})
    count = 120 // batch_size
    batches = islice(training_batches(dataset, batch_size, seed=2), count)
    held = [batch["mask"].flatten(1).any(dim=1).sum().item() for batch in batches]
    sizes = {batch_size // 3, -(-batch_size // 3)}
    assert sum(held) >= 120 // 3 and sum(number not in sizes for number in held) <= 0.1 * count
    assert min(held) >= batch_size // 3
    nowhere = training_batches(dataset, batch_size, seed=2, crop_foreground="none")
    assert sum(batch["mask"].any().item() for batch in islice(nowhere, count)) <= 4


@pytest.mark.parametrize(("foreground", "low", "high"), [("class", 0.45, 0.62), ("pixel", 0, 0.05)])
def test_a_rare_class_comes_as_often_as_the_others(tmp_path, foreground, low, high):
    """One pixel of it beside 800: a random marked pixel is of it in one of 801 crops."""
    dataset = pictures_of(tmp_path, {"p": drawn(large=LARGE, rare=RARE)})
    items = TrainingItems(dataset, "none", 0, foreground)
    held = [items[0, position]["mask"][0, 1].any().item() for position in range(2, 900, 3)]
    assert low < np.mean(held) < high


def test_a_class_counts_only_where_it_occurs(tmp_path):
    dataset = pictures_of(tmp_path, {"p": drawn(rare=RARE), "q": drawn()})
    items = TrainingItems(dataset, "none", 0)
    assert all(items[0, position]["mask"][0, 1].any() for position in range(2, 120, 3))
    assert len({corner_of(items[1, position]) for position in range(2, 60, 3)}) > 15


def test_every_rater_s_mask_comes_as_often(tmp_path):
    """The first rater marked 800 pixels, the second one."""
    mask = drawn(raters=2, large=LARGE)
    mask[1, 0, 37, 2] = True
    items = TrainingItems(pictures_of(tmp_path, {"p": mask}), "none", 0)
    held = [items[0, position]["mask"].flatten(1).any(dim=1).tolist() for position in range(2, 900, 3)]
    assert 0.42 < np.mean([second for _, second in held]) < 0.58 and all(map(any, held))


def test_crops_lie_where_the_truth_is_known():
    item = item_of(40, 40) | {"known": torch.zeros(2, 1, 40, 40)}
    item["known"][0, 0, 30, 5] = 1
    assert all(crop(item, 8, 0, position, "known")["known"].any() for position in range(40))
    unknown = item | {"known": torch.zeros(2, 1, 40, 40)}
    assert len({corner_of(crop(unknown, 8, 0, position, "known")) for position in range(20)}) > 15


# ---- volumes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def volumes(tmp_path):
    """Volume a: ten slices, of which one has a large object and another a pixel of the rare class. b: all empty."""
    masks = {f"a{i}": drawn() for i in range(10)} | {f"b{i}": drawn() for i in range(5)}
    masks |= {"a3": drawn(large=LARGE), "a7": drawn(rare=RARE)}
    return pictures_of(tmp_path, masks, volume_of={name: name[0] for name in masks})


def test_a_volume_s_empty_slice_gives_way_to_one_with_each_class_as_often(volumes):
    items = TrainingItems(volumes, "none", 1)
    seen = Counter(items[0, position]["name"] for position in range(2, 600, 3))
    assert set(seen) == {"a3", "a7"} and 0.4 < seen["a3"] / seen.total() < 0.6
    for position in range(2, 90, 3):
        item = items[0, position]
        assert item["mask"][0, 1 if item["name"] == "a7" else 0].any()
        assert item["slice_index"] == int(item["name"][1:])
    assert {items[12, position]["name"] for position in range(60)} == {"b2"}
    assert {items[0, position]["name"] for position in range(60) if position % 3 < 2} == {"a0"}


def test_a_third_of_a_batch_of_slices_holds_foreground_though_a_seventh_of_the_slices_does(volumes):
    """Without it, 2 of 15 slices are marked: of three items one, in three of ten batches."""
    volumes.cases = [case for case in volumes.cases if case.volume == "a"]
    held = [batch["mask"].any().item() for batch in islice(training_batches(volumes, 3, seed=0), 60)]
    assert all(held)
    other = training_batches(volumes, 3, seed=0, crop_foreground="pixel")
    assert np.mean([batch["mask"].any().item() for batch in islice(other, 60)]) < 0.4


def test_workers_and_a_later_start_change_no_crop(volumes):
    alone = list(islice(training_batches(volumes, 2, seed=5), 8))
    helped = list(islice(training_batches(volumes, 2, seed=5, start_step=4, num_workers=2), 4))
    for one, other in zip(alone[4:], helped, strict=True):
        assert one["name"] == other["name"] and torch.equal(one["image"], other["image"])


def test_a_volume_s_masks_are_read_once(volumes, monkeypatch):
    items, reads = TrainingItems(volumes, "none", 1), []
    read = type(volumes).read_mask
    monkeypatch.setattr(type(volumes), "read_mask", lambda self, case: reads.append(case.name) or read(self, case))
    for position in range(2, 62, 3):
        items[0, position]
    assert len(reads) <= 10 + 2 * 20  # each slice once; then the asked one and the one that is shown


def test_slices_that_fit_the_network_are_neither_cut_nor_replaced(tmp_path):
    items = TrainingItems(Stack(tmp_path, 8, **KEEPING), "none", 1)
    assert {items[0, position]["name"] for position in range(30)} == {"a0"}


# ---- runs ----------------------------------------------------------------------------------------------------------

CORNERS_OF_0_6_0 = [
    *((4, 30), (30, 1), (3, 12), (32, 1), (4, 0), (32, 1)),
    *((16, 28), (16, 28), (14, 31), (14, 31), (29, 14), (29, 14)),
]


def test_pixel_is_what_version_0_6_0_did(tmp_path):
    """The corners that version 0.6.0 took of these items, with seed 3."""
    dataset = pictures_of(tmp_path, {"p": drawn(large=LARGE, rare=RARE), "q": drawn(rare=RARE)})
    items = TrainingItems(dataset, "none", 3, "pixel")
    assert [corner_of(items[index, position]) for position in range(6) for index in range(2)] == CORNERS_OF_0_6_0


def test_a_run_of_0_6_0_goes_on_with_its_own_crops():
    """What its checkpoint lacks is filled in when it is read."""
    settings = settle(*parse("", TRAIN, "--data_dir x --crop True".split()))
    assert settings.train.crop_foreground == "class"
    config = {part: asdict(getattr(settings, part)) for part in ("data", "train", "model", "diffusion")}
    config["train"] |= {"crop_foreground": OLDER["train"]["crop_foreground"]}
    resumed = settle(*parse("", TRAIN, "--data_dir x --lr 0.1".split()), Saved(config, "m.pt"))
    assert (resumed.train.crop_foreground, resumed.train.lr) == ("pixel", 0.1)


def test_the_flag_belongs_to_crops():
    line = "--data_dir x --crop_foreground none"
    with pytest.raises(UserError, match="^--crop_foreground belongs to --crop True, not False; leave it out$"):
        settle(*parse("", TRAIN, line.split()))
    assert settle(*parse("", TRAIN, f"{line} --crop True".split())).train.crop_foreground == "none"
