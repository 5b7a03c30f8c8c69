"""The data contract: items, checks and the documented loader."""

import os
import textwrap

import numpy as np
import pytest
import torch
from networks import ArrayDataset, array_dataset

from guided_diffusion.data.batches import sampling_batches
from guided_diffusion.data.cases import Case
from guided_diffusion.data.loaders import folder as custom_dataset_loader
from guided_diffusion.data.registry import LOADERS, build_dataset, find_loader
from guided_diffusion.runtime.errors import UserError


@pytest.fixture
def dataset(tmp_path):
    return array_dataset(tmp_path)


# ---- items -------------------------------------------------------------------------------------------------------


def test_item_contract(dataset):
    item = dataset[3]
    assert item.keys() == {"image", "mask", "name", "size"}
    assert item["image"].dtype == torch.float32 and item["image"].shape == (2, 16, 16)
    assert item["mask"].dtype == torch.float32 and item["mask"].shape == (2, 2, 16, 16)
    assert item["name"] == "c3" and item["size"] == (20, 30)
    torch.testing.assert_close(item["image"], torch.full((2, 16, 16), 30 / 127.5 - 1))
    assert 0 <= item["mask"].min() and item["mask"].max() <= 1 and len(item["mask"].unique()) > 2  # it has shrunk


def test_label_and_place_in_a_volume_are_in_the_item(tmp_path):
    item = array_dataset(tmp_path, extra={"label": 3, "volume": "v", "slice_index": 7}, names=("c0",))[0]
    assert (item["label"], item["volume"], item["slice_index"]) == (3, "v", 7)


def test_masks_are_neither_read_nor_given_for_sampling_but_load_mask_reads_them(tmp_path):
    dataset = array_dataset(tmp_path, need_masks=False)
    assert "mask" not in dataset[0]
    assert dataset.load_mask(dataset.cases[0]).shape == (2, 2, 20, 30)
    array_dataset(tmp_path, need_masks=False, read_mask=lambda self, case: pytest.fail("read a mask"))[0]


# ---- checks ------------------------------------------------------------------------------------------------------


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="gone: no such folder"):
        ArrayDataset(tmp_path / "gone", 16)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file"):
        ArrayDataset(tmp_path / "file", 16)
    with pytest.raises(UserError, match="no cases found for Made; its find_cases returned none"):
        array_dataset(tmp_path, names=())


@pytest.mark.parametrize("name", LOADERS)
def test_messages_call_a_loader_by_its_data_name(name):
    loader = find_loader(name)
    assert loader.shown_name() == name
    assert type("Own", (loader,), {}).shown_name() == "Own"  # that name means another class in --data_name


def test_duplicate_names_are_refused(tmp_path):
    def by_number(self):
        return [Case(name, (self.data_dir / f"{k}{name}",), ("m",)) for k, name in enumerate(self.names)]

    with pytest.raises(UserError, match="2c1: its case name 'c1' is also that of .*0c1"):
        array_dataset(tmp_path, names=("c1", "c2", "c1"), find_cases=by_number)


@pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden"])
def test_names_that_cannot_be_files_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot be a file name"):
        array_dataset(tmp_path, names=(name,))


def test_file_names_that_are_no_utf_8_are_refused_in_printable_words(tmp_path, save_picture):
    """As a ZIP from Windows leaves them."""
    path = save_picture(tmp_path / "images" / "cafe.png", np.zeros((8, 8, 3), np.uint8))
    path.rename(path.with_name(os.fsdecode(b"caf\xe9.png")))
    with pytest.raises(UserError) as error:
        build_dataset("FOLDER", tmp_path, 16)
    assert str(error.value) == rf"{path.parent}/caf\xe9.png: its name is not in UTF-8; rename it"

    def of_c0(self):
        return [Case(name, (self.data_dir / "c0",)) for name in self.names]

    with pytest.raises(UserError, match=r"^caf\\xe9: its name is not in UTF-8"):
        array_dataset(tmp_path, names=(os.fsdecode(b"caf\xe9"),), find_cases=of_c0)
    with pytest.raises(UserError, match=r"^'a\\nb': its name holds a line break or another control character"):
        array_dataset(tmp_path, names=("a\nb",), find_cases=of_c0)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((20, 30)), r"shape \(20, 30\), not \[C, H, W\]"),
        (np.zeros((3, 20, 30)), "has 3 channels, the data set has 2"),
        (np.full((2, 20, 30), np.nan), "not finite"),
    ],
)
def test_wrong_images_are_refused(tmp_path, image, message):
    with pytest.raises(UserError, match=f"c0: .*{message}"):
        array_dataset(tmp_path, images={"c0": image})[0]


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.zeros((2, 20, 30)), r"shape \(2, 20, 30\), not \[raters, 2, H, W\]"),
        (np.zeros((1, 3, 20, 30)), r"shape \(1, 3, 20, 30\)"),
        (np.zeros((1, 2, 30, 20)), "mask has 30x20 pixels, its image c0 has 20x30"),
    ],
)
def test_wrong_masks_are_refused(tmp_path, mask, message):
    with pytest.raises(UserError, match=f"m: .*{message}"):
        array_dataset(tmp_path, masks={"c0": mask})[0]


# ---- loaders by name ---------------------------------------------------------------------------------------------


def test_the_documented_loader_works_from_its_file(tmp_path, save_picture):
    """The example in custom_dataset_loader's docstring, saved as a file and used as documented."""
    example = custom_dataset_loader.__doc__.split("MyDataset`:\n")[1].split("A case without")[0]
    (tmp_path / "my_loader.py").write_text(textwrap.dedent(example))
    for name in ("p1", "p2"):
        save_picture(tmp_path / "data" / name / "photo.png", np.full((24, 40, 3), 255, np.uint8))
        save_picture(tmp_path / "data" / name / "truth.png", np.eye(24, 40, dtype=np.uint8) * 255)
    dataset = build_dataset(f"{tmp_path}/my_loader.py:MyDataset", tmp_path / "data", 32, need_masks=True)
    assert dataset.class_names == ("polyp",)
    batch = next(iter(sampling_batches(dataset, [[0, 1]], num_workers=1)))
    assert batch["name"] == ["p1", "p2"] and batch["mask"].shape == (2, 1, 1, 32, 32)
    torch.testing.assert_close(batch["image"], torch.ones(2, 3, 32, 32))
