"""Augmentation: image and masks move together, by the seed and the position alone, and as the modality allows."""

import dataclasses
import random
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import LOADER
from torchvision import tv_tensors

from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.data.augment import STRENGTHS, Augmentation, Intensity, Noise, Strength, Warp, reflect
from guided_diffusion.data.batches import TrainingItems, training_batches
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.resizing import View

SIZE = 32
LEVELS = ("light", "strong")


def augmentation(level, orientation="any", axis=-1, size=SIZE, seed=0, background=None, soft_masks=True):
    data = SimpleNamespace(orientation=orientation, left_right_axis=axis, image_size=size, background=background)
    data.view = View(soft_masks=soft_masks)
    return Augmentation(level, data, seed)


@pytest.fixture
def clean(monkeypatch):
    """Strong without blur and noise, so that a channel's values still tell its two sides apart."""
    monkeypatch.setitem(STRENGTHS, "strong", dataclasses.replace(STRENGTHS["strong"], blur=0, noise=0))


def blob():
    """An L that no flip or rotation maps to itself: bool [S, S]."""
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[7:24, 8:14] = True
    mask[18:24, 8:26] = True
    return mask


def item_of(mask, channels=2):
    """An item whose image shows the mask in each channel, in another contrast; its raters: the mask, and the rest."""
    image = torch.stack([mask * (1.5 + c) - 0.7 for c in range(channels)])
    return {"image": image, "mask": torch.stack([mask, mask, ~mask]).float()[:, None], "name": "c", "size": (40, 50)}


def shown(channel):
    """What of a channel with two values, interpolated in between, is on the upper side."""
    return channel > (channel.min() + channel.max()) / 2


# ---- geometry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("orientation, soft_masks", [("any", True), ("any", False), ("upright", True)])
def test_image_and_all_masks_move_alike(clean, level, orientation, soft_masks):
    augment, moved = augmentation(level, orientation, soft_masks=soft_masks), 0
    shades = set()
    for position in range(40):
        item = augment(item_of(blob()), position)
        image, mask = item["image"], item["mask"]
        assert type(image) is torch.Tensor and type(mask) is torch.Tensor and mask.dtype == image.dtype == torch.float32
        assert image.shape == (2, SIZE, SIZE) and mask.shape == (3, 1, SIZE, SIZE)
        shades.update(mask.unique().tolist())
        assert torch.equal(mask[0], mask[1])
        torch.testing.assert_close(mask[0], 1 - mask[2])
        for channel in image:  # bilinear against nearest: they may differ along the outline
            assert (shown(channel) != (mask[0, 0] > 0.5)).float().mean() < (0.001 if soft_masks else 0.02)
        moved += int(((mask[0, 0] > 0.5) != blob()).float().mean() > 0.04)
        assert item["name"] == "c" and item["size"] == (40, 50)
    assert moved > 20
    assert (0 <= min(shades) and max(shades) <= 1 and len(shades) > 100) if soft_masks else shades == {0.0, 1.0}


def test_beyond_the_borders_lies_the_reflection():
    for length in (1, 2, 5, 8):
        far = 3 * length
        expected = np.pad(np.arange(length), far, mode="reflect") if length > 1 else np.zeros(2 * far + 1)
        places = torch.arange(-far, length + far, dtype=torch.float32)
        got = reflect(torch.stack([places, places], dim=-1), torch.tensor([length - 1.0, length - 1.0]))
        if length > 1:
            assert got[:, 0].tolist() == expected.tolist()
        assert torch.equal(got[:, 0], got[:, 1]) and got.isfinite().all()


@pytest.mark.parametrize("level", LEVELS)
def test_no_black_wedges(clean, level):
    """An image and a mask that reach to the borders everywhere still do."""
    image, mask = torch.full((1, SIZE, SIZE), 5.0), torch.ones(1, 1, SIZE, SIZE)
    for position in range(30):
        item = augmentation(level)({"image": image, "mask": mask}, position)
        torch.testing.assert_close(item["image"], image)
        torch.testing.assert_close(item["mask"], mask)


def looked_at(seed, rotation=0, **bounds):
    """The centred coordinates [2, S, S] (x, y) of the pixels, and where a warp with these bounds looks for each."""
    still = {field.name: 0 for field in dataclasses.fields(Strength)} | {"scale": 1}
    places = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="xy")) - (SIZE - 1) / 2
    torch.manual_seed(seed)
    return places, Warp(Strength(**still | bounds), rotation)(tv_tensors.Image(places), tv_tensors.Mask(places))[0]


def fitted(seed, **bounds):
    """The linear map [2, 2] and shift [2] in pixels of a warp."""
    places, warped = looked_at(seed, **bounds)
    inside = (slice(None), slice(10, -10), slice(10, -10))  # where nothing is reflected
    before, after = (x[inside].flatten(1).T.numpy() for x in (places, warped))
    solved, residues, *_ = np.linalg.lstsq(np.column_stack([before, np.ones(len(before))]), after, rcond=None)
    assert residues.max() < 1e-6
    return solved[:2].T, solved[2]


def test_each_part_of_the_affine_map_is_what_its_bound_says():
    """Against what makes a rotation, a scaling, a shear and a shift."""
    drawn = {"angle": [], "scale": [], "shear": [], "shift": []}
    for seed in range(20):
        matrix, shift = fitted(seed, rotation=30)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=1e-4)
        assert np.linalg.det(matrix) > 0 and np.abs(shift).max() < 1e-4
        drawn["angle"].append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
        matrix, shift = fitted(seed, scale=1.2)
        np.testing.assert_allclose(matrix, matrix[0, 0] * np.eye(2), atol=1e-4)
        drawn["scale"].append(np.log(matrix[0, 0]) / np.log(1.2))
        matrix, _ = fitted(seed, shear=10)
        np.testing.assert_allclose(matrix - np.eye(2), [[0, matrix[0, 1]], [0, 0]], atol=1e-4)
        drawn["shear"].append(np.degrees(np.arctan(matrix[0, 1])))
        matrix, shift = fitted(seed, translation=0.1)
        np.testing.assert_allclose(matrix, np.eye(2), atol=1e-4)
        drawn["shift"] += list(shift)
    for name, bound in {"angle": 30, "scale": 1, "shear": 10, "shift": 0.1 * SIZE}.items():
        assert bound * 0.6 < max(drawn[name]) <= bound and -bound <= min(drawn[name]) < -bound * 0.6, name


def test_an_elastic_deformation_is_smooth_and_folds_nothing():
    largest = []
    for seed in range(50):
        places, warped = looked_at(seed, elastic=STRENGTHS["strong"].elastic)
        largest.append((warped - places).abs().max())
        (xx, yx), (xy, yy) = warped.diff(dim=2)[:, :-1], warped.diff(dim=1)[:, :, :-1]
        inside = (slice(4, -4), slice(4, -4))  # where nothing is reflected
        assert (xx * yy - xy * yx)[inside].min() > 0
        assert warped.diff(n=2, dim=2)[:, 4:-4, 4:-4].abs().max() < 0.25
    assert max(largest) > 0.05 * SIZE and min(largest) < 0.02 * SIZE


def tilt(mask):
    """The angle of a bar's long axis to the vertical, in degrees."""
    rows, columns = np.nonzero(mask.numpy())
    values, vectors = np.linalg.eigh(np.cov(rows, columns))
    return np.degrees(np.arctan2(*np.abs(vectors[::-1, 1])))


@pytest.mark.parametrize("orientation, low, high", [("upright", 5, 15), ("any", 80, 90)])
def test_how_far_it_rotates(orientation, low, high):
    bar = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    bar[4:28, 15:17] = True
    item = item_of(bar)
    largest = max(tilt(augmentation("light", orientation)(item, p)["mask"][0, 0]) for p in range(100))
    assert low < largest <= high


# ---- what each modality allows -----------------------------------------------------------------------------------


def sides_of(dataset, level):
    """On which sides (top, bottom, left, right) a mark at the top left is found, in over a tenth of many items."""
    mark = torch.zeros(1, 1, SIZE, SIZE)
    mark[..., 3:8, 3:8] = 1
    augment, sides = Augmentation(level, dataset, 0), Counter()
    for position in range(60):
        item = augment({"image": torch.zeros(dataset.image_channels, SIZE, SIZE), "mask": mark}, position)
        rows, columns = item["mask"][0, 0].nonzero().float().mean(dim=0).tolist()
        sides.update(["top" if rows < SIZE / 2 else "bottom", "left" if columns < SIZE / 2 else "right"])
    return {side for side, count in sides.items() if count > 6}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "name, folder, sides",
    [
        ("ISIC", "isic", {"top", "bottom", "left", "right"}),
        ("FOLDER", "pictures", {"top", "left", "right"}),
        ("BRATS", "slices", {"left", "top", "bottom"}),  # [X, Y]: left and right of the head lie along the first axis
    ],
)
def test_mirrors_only_what_the_modality_allows(request, name, folder, sides, level):
    dataset = build_dataset(name, request.getfixturevalue(folder), SIZE, split="train", need_masks=True)
    assert sides_of(dataset, level) == sides


def test_nifti_slices_of_a_folder_are_mirrored_along_their_first_axis(tmp_path, save_nifti):
    for part in ("images", "masks"):
        save_nifti(tmp_path / part / "a.nii.gz", np.ones((SIZE, SIZE, 2), np.float32))
    assert sides_of(build_dataset("FOLDER", tmp_path, SIZE, need_masks=True), "light") == {"left", "top", "bottom"}


def test_nodules_have_no_top(tmp_path):
    from guided_diffusion.data.phantoms import write_lidc

    write_lidc(tmp_path, num_train=2, num_test=1, size=SIZE)
    dataset = build_dataset("LIDC", tmp_path, SIZE, split="train", need_masks=True)
    assert sides_of(dataset, "light") == {"top", "bottom", "left", "right"}


# ---- intensity ---------------------------------------------------------------------------------------------------


def test_intensity_changes_each_channel_by_a_gain_and_an_offset_and_no_mask():
    generator = torch.Generator().manual_seed(0)
    image = 3 * torch.randn(4, SIZE, SIZE, generator=generator) - 1  # z-scores, far beyond [0, 1] and [-1, 1]
    mask = (image[:1, None] > 0).float()
    gains = []
    torch.manual_seed(0)
    for _ in range(50):
        changed, same = Intensity(STRENGTHS["strong"])(tv_tensors.Image(image), tv_tensors.Mask(mask))
        assert torch.equal(same, mask)
        for before, after in zip(image.flatten(1), changed.flatten(1), strict=True):
            (gain, offset), residue, *_ = np.polyfit(before, after, 1, full=True)
            assert residue[0] < 1e-6 * before.numel() and abs(offset) < 3 * 0.5 + 0.5
            gains.append(gain)
    gains = np.reshape(gains, (50, 4))
    assert 0.75 * 0.9 < gains.min() < 0.85 and 1.15 < gains.max() < 1.25 * 1.1
    assert 0 < gains.std(axis=1).mean() < gains.mean(axis=1).std()  # of the channels apart, less than of them all


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [0.0, 4.0])
def test_a_flat_image_stays_as_it_is(level, value):
    """Such as a slice outside the head."""
    item = {"image": torch.full((4, SIZE, SIZE), value), "mask": torch.zeros(1, 1, SIZE, SIZE)}
    for position in range(20):
        torch.testing.assert_close(augmentation(level)(item, position)["image"], item["image"])


def test_what_surrounds_the_head_stays_as_it_is():
    """Zeros of skull-stripped MRI are no tissue: neither brighter nor noisy, and not counted in what is."""
    generator = torch.Generator().manual_seed(0)
    head = (torch.arange(SIZE) > 20).float().expand(2, SIZE, SIZE)
    image = head * (2 + torch.randn(2, SIZE, SIZE, generator=generator))
    torch.manual_seed(0)
    for step in (Intensity(STRENGTHS["strong"], background=0.0), Noise(0.15, background=0.0)):
        changed = step(tv_tensors.Image(image), tv_tensors.Mask(head))[0]
        assert (changed[head == 0] == 0).all() and (changed != image)[head == 1].all()
    only_gain = dataclasses.replace(STRENGTHS["strong"], offset=0.0, channel_offset=0.0)
    changed = Intensity(only_gain, background=0.0)(tv_tensors.Image(image), tv_tensors.Mask(head))[0]
    torch.testing.assert_close(changed[0][head[0] == 1].mean(), image[0][head[0] == 1].mean())  # it turns about that
    assert torch.equal(Noise(0.15, 0.0)(tv_tensors.Image(0 * image), tv_tensors.Mask(head))[0], 0 * image)


@pytest.mark.parametrize("name, folder, value", [("BRATS", "brats", 0.0), ("ISIC", "isic", None)])
def test_which_kinds_of_data_have_a_background(request, name, folder, value, tmp_path, save_nifti):
    dataset = build_dataset(name, request.getfixturevalue(folder), SIZE, split="train", need_masks=True)
    steps = {type(step): step for step in Augmentation("strong", dataset, 0).transform.transforms}
    assert dataset.background == steps[Intensity].background == value
    for part in ("images", "masks"):
        save_nifti(tmp_path / part / "a.nii.gz", np.ones((SIZE, SIZE, 2), np.float32))
    assert build_dataset("FOLDER", tmp_path, SIZE).background == 0.0
    assert build_dataset("FOLDER", tmp_path, SIZE, ct_window=(-100, 100)).background is None


def test_strong_blurs_and_adds_noise_to_some_images():
    stripes = (torch.arange(SIZE) // 4 % 2).float().expand(1, SIZE, SIZE)
    item = {"image": stripes.contiguous(), "mask": torch.zeros(1, 1, SIZE, SIZE)}
    kinds = [len(augmentation("strong")(item, p)["image"].round(decimals=4).unique()) for p in range(60)]
    assert min(kinds) == 2 and max(kinds) > SIZE * SIZE / 2  # some left sharp, some with noise in every pixel


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_tiny_images_stay_finite(size):
    item = {"image": torch.randn(3, size, size), "mask": torch.ones(1, 1, size, size)}
    for position in range(30):
        changed = augmentation("strong", size=size)(item, position)
        assert changed["image"].isfinite().all() and changed["mask"].isfinite().all()


# ---- randomness --------------------------------------------------------------------------------------------------


def test_what_is_drawn_follows_from_seed_and_position_alone():
    def draw(position, seed=0):
        return augmentation("strong", seed=seed)(item_of(blob()), position)["image"]

    expected = draw(7)
    torch.rand(3)
    assert torch.equal(draw(7), expected)
    assert not torch.equal(draw(8), expected) and not torch.equal(draw(7, seed=1), expected)


def test_global_generators_and_the_item_are_left_alone():
    item = item_of(blob())
    before = {name: value.clone() for name, value in item.items() if name in ("image", "mask")}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for position in range(5):
        augmentation("strong")(item, position)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert all(torch.equal(item[name], value) for name, value in before.items())


@pytest.fixture(scope="module")
def dataset(isic):
    return build_dataset("ISIC", isic, SIZE, split="train", need_masks=True)


def first(dataset, count, **options):
    return list(islice(training_batches(dataset, 3, seed=5, **options), count))


def assert_equal(one, other):
    for batch, twin in zip(one, other, strict=True):
        assert batch["name"] == twin["name"]
        assert torch.equal(batch["image"], twin["image"]) and torch.equal(batch["mask"], twin["mask"])


def test_workers_and_a_later_start_do_not_change_the_batches(dataset):
    whole = first(dataset, 6, augment="strong")
    assert_equal(first(dataset, 6, augment="strong", num_workers=2), whole)
    assert_equal(first(dataset, 2, augment="strong", start_step=4, num_workers=1), whole[4:])


def test_an_item_is_changed_anew_each_time(dataset):
    seen = [image for batch in first(dataset, 8, augment="light") for image in batch["image"]]
    assert not any(torch.equal(one, other) for i, one in enumerate(seen) for other in seen[:i])


def test_none_changes_nothing(dataset):
    items = TrainingItems(dataset, "none", 0)
    for index in range(len(dataset)):
        plain, item = dataset[index], items[index, 17]
        assert item.keys() == plain.keys() and item["name"] == plain["name"]
        assert torch.equal(item["image"], plain["image"]) and torch.equal(item["mask"], plain["mask"])


# ---- by the script -----------------------------------------------------------------------------------------------


def test_a_training_with_augmentation_and_its_sampling(train, sample, isic, tmp_path, capsys):
    path = train("ISIC", isic, "--augment strong")
    assert "augmentation: strong, any orientation" in capsys.readouterr().out
    checkpoint = load_checkpoint(path)
    assert checkpoint.config["train"]["augment"] == "strong"
    assert all(value.isfinite().all() for value in checkpoint.model.values())
    (tmp_path / "run").rename(tmp_path / "augmented")
    plain = load_checkpoint(train("ISIC", isic))
    assert plain.config["train"]["augment"] == "none"
    assert any(not torch.equal(value, plain.model[name]) for name, value in checkpoint.model.items())
    assert len(list((sample(tmp_path / "augmented" / path.name, isic) / "masks").iterdir())) == 3


def test_a_checkpoint_older_than_the_flag_goes_on_without(script, trained, pictures, tmp_path):
    old = load_checkpoint(trained)
    del old.config["train"]["augment"]
    save_checkpoint(old, tmp_path / trained.name)
    where = ["--data_dir", pictures, "--out_dir", tmp_path]
    script("segmentation_train", [*where, "--resume_checkpoint auto --max_steps 3"])
    assert load_checkpoint(tmp_path / "model000003.pt").config["train"]["augment"] == "none"


def test_the_help_and_a_wrong_value(script, refusal, capsys):
    with pytest.raises(SystemExit):
        script("segmentation_train", "--help")
    assert "--augment {none,light,strong}" in capsys.readouterr().out
    assert "must be one of none, light, strong" in refusal("segmentation_train", "--augment medium --data_dir x")
    assert "is a flag of segmentation_train.py" in refusal("segmentation_sample", "--augment light")


@pytest.mark.parametrize("line", ['orientation = "sideways"', "left_right_axis = 0"])
def test_a_loader_of_ones_own_that_says_it_wrong(refusal, save_picture, tmp_path, line):
    (tmp_path / "mine.py").write_text(LOADER + f"    {line}\n")
    for name in ("photo", "truth"):
        save_picture(tmp_path / "data" / "p1" / f"{name}.png", np.full((16, 16, 3), 255, np.uint8))
    message = refusal(
        "segmentation_train",
        [f"--data_name {tmp_path}/mine.py:Polyps --data_dir", tmp_path / "data", "--out_dir", tmp_path / "run"]
        + ["--image_size 32 --num_channels 8 --channel_mult 1,2 --num_workers 0 --augment light"],
    )
    assert line.split(" = ")[0] in message and "Polyps" in message and "'any' or 'upright'" in message
