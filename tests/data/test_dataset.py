"""The data contract: items, checks, batches, training order and loaders from a file."""

import os
import pickle
import textwrap
from itertools import islice

import numpy as np
import pytest
import torch

from guided_diffusion.data.batches import Selection, TrainingOrder, collate, sampling_batches, training_batches
from guided_diffusion.data.cases import Case
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.loaders import folder as custom_dataset_loader
from guided_diffusion.data.registry import build_dataset, find_loader
from guided_diffusion.data.resizing import resize_image, resize_mask
from guided_diffusion.runtime.errors import UserError


class ArrayDataset(SegmentationDataset):
    """Cases from arrays in memory, to test the base class alone."""

    image_channels = 2
    class_names = ("a", "b")
    images = {f"c{i}": np.full((2, 20, 30), 10.0 * i) for i in range(5)}
    masks = {name: np.arange(2 * 2 * 20 * 30).reshape(2, 2, 20, 30) % 7 == 0 for name in images}
    names = tuple(images)
    extra = {}

    def find_cases(self):
        return [Case(name, (self.data_dir / name,), (self.data_dir / "m",), **self.extra) for name in self.names]

    def read_image(self, case):
        return self.images[case.name]

    def read_mask(self, case):
        return self.masks[case.name]


def make(tmp_path, need_masks=True, **attributes):
    return type("Made", (ArrayDataset,), attributes)(tmp_path, 16, need_masks=need_masks)


@pytest.fixture
def dataset(tmp_path):
    return make(tmp_path)


# ---- items -------------------------------------------------------------------------------------------------------


def test_item_contract(dataset):
    item = dataset[3]
    assert item.keys() == {"image", "mask", "name", "size"}
    assert item["image"].dtype == torch.float32 and item["image"].shape == (2, 16, 16)
    assert item["mask"].dtype == torch.float32 and item["mask"].shape == (2, 2, 16, 16)
    assert item["name"] == "c3" and item["size"] == (20, 30)
    torch.testing.assert_close(item["image"], torch.full((2, 16, 16), 30 / 127.5 - 1))
    assert set(item["mask"].unique().tolist()) == {0.0, 1.0}


def test_label_and_place_in_a_volume_are_in_the_item(tmp_path):
    item = make(tmp_path, extra={"label": 3, "volume": "v", "slice_index": 7}, names=("c0",))[0]
    assert (item["label"], item["volume"], item["slice_index"]) == (3, "v", 7)


def test_masks_are_neither_read_nor_given_for_sampling_but_load_mask_reads_them(tmp_path):
    dataset = make(tmp_path, need_masks=False)
    assert "mask" not in dataset[0]
    assert dataset.load_mask(dataset.cases[0]).shape == (2, 2, 20, 30)
    make(tmp_path, need_masks=False, read_mask=lambda self, case: pytest.fail("read a mask"))[0]


def test_image_resize_is_smooth_and_averages():
    hairs = (torch.arange(64) % 8 == 0).float().expand(1, 64, 64)  # lines that picking single pixels would miss
    small = resize_image(hairs, 8)
    assert small.shape == (1, 8, 8)
    torch.testing.assert_close(small, torch.full_like(small, 1 / 8), atol=0.06, rtol=0)


@pytest.mark.parametrize("size", [8, 37, 100])
def test_mask_resize_stays_binary_and_in_place(size):
    rows, columns = np.mgrid[0:48, 0:64]
    mask = torch.from_numpy(np.hypot((rows + 0.5) / 48 - 0.5, (columns + 0.5) / 64 - 0.5) < 0.3).float()[None, None]
    resized = resize_mask(mask, size)
    assert set(resized.unique().tolist()) == {0.0, 1.0}
    grid = (torch.arange(size) + 0.5) / size - 0.5
    expected = (grid[:, None] ** 2 + grid**2).sqrt() < 0.3
    assert (resized[0, 0].bool() != expected).float().mean() < 0.06
    # Symmetric input stays symmetric: nearest neighbour without the half-pixel shift of plain "nearest".
    assert torch.equal(resized, resized.flip(-1)) or size == 37


# ---- checks ------------------------------------------------------------------------------------------------------


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="gone: no such folder"):
        ArrayDataset(tmp_path / "gone", 16)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file"):
        ArrayDataset(tmp_path / "file", 16)
    with pytest.raises(UserError, match="no cases found for Made; see its"):
        make(tmp_path, names=())


def test_duplicate_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="c1: its case name 'c1' is also that of"):
        make(tmp_path, names=("c1", "c2", "c1"))


@pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden"])
def test_names_that_cannot_be_files_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="cannot be a file name"):
        make(tmp_path, names=(name,))


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
        make(tmp_path, names=(os.fsdecode(b"caf\xe9"),), find_cases=of_c0)


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
        make(tmp_path, images={"c0": image})[0]


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
        make(tmp_path, masks={"c0": mask})[0]


# ---- batches -----------------------------------------------------------------------------------------------------


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
    dataset = make(tmp_path, images={**ArrayDataset.images, "c2": np.full((2, 20, 30), np.inf)})
    with pytest.raises(UserError) as caught:
        list(sampling_batches(dataset, [[0], [2]], num_workers=num_workers))
    assert str(caught.value) == (f"{tmp_path / 'c2'}: holds values that are not finite; repair it or leave it out")


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


@pytest.mark.parametrize("name", ["ISIC", "isic", "BRATS", "FOLDER", "LIDC"])
def test_named_loaders_can_be_found_and_pickled(name):
    loader = find_loader(name)
    assert issubclass(loader, SegmentationDataset) and pickle.loads(pickle.dumps(loader)) is loader


def test_unknown_loaders_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match="--data_name CAMUS: unknown; use BRATS, ISIC, FOLDER, LIDC, MSD, AUTO or path"):
        find_loader("CAMUS")
    with pytest.raises(UserError, match="none.py: no such file"):
        find_loader(f"{tmp_path}/none.py:A")
    (tmp_path / "bad.py").write_text("x = 1\nclass A(:\n")
    with pytest.raises(UserError, match="bad.py: line 2: "):
        find_loader(f"{tmp_path}/bad.py:A")
    (tmp_path / "gone.py").write_text("x = 1\nimport not_installed_anywhere\n")
    with pytest.raises(UserError, match="gone.py: line 2: ModuleNotFoundError: No module named 'not_installed"):
        find_loader(f"{tmp_path}/gone.py:A")
    (tmp_path / "other.py").write_text("class A: pass\n")
    for name in ("A", "B"):
        with pytest.raises(UserError, match=f"other.py has no class {name} that extends SegmentationDataset"):
            find_loader(f"{tmp_path}/other.py:{name}")
