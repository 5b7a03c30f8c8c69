"""The cache of pictures: items equal those without it to the bit, are decoded once, and never outlive their files."""

import errno
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import LOADER, files, write_folder
from PIL import Image

from guided_diffusion.data import picture_cache
from guided_diffusion.data.batches import sampling_batches
from guided_diffusion.data.picture_cache import use_picture_cache
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.resizing import View
from guided_diffusion.io import images
from guided_diffusion.io.files import check_writable
from guided_diffusion.runtime.errors import UserError

SIZES = [(40, 32), (32, 32), (20, 50)]  # (H, W): one is the network's


@pytest.fixture(autouse=True)
def an_empty_disk(monkeypatch):
    """The cache leaves a share of the disk free, and the disk that tests run on may be fuller than that."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**12))


@pytest.fixture
def decoded(monkeypatch):
    """A list to which each picture's name is added when its pixels are decoded."""
    names, original = [], images.read_pixels

    def counted(path):
        names.append(os.path.basename(path))
        return original(path)

    monkeypatch.setattr(images, "read_pixels", counted)
    return names


def load(data, name="FOLDER", size=32, folder=None, **options):
    dataset = build_dataset(name, data, size, **{"split": "train", "need_masks": True, **options})
    if folder is not None:
        use_picture_cache(dataset, folder, show=False)
    return dataset


def assert_same_items(one, other):
    for item, twin in zip(one, other, strict=True):
        assert item.keys() == twin.keys()
        for key, value in item.items():
            if torch.is_tensor(value):
                assert torch.equal(value, twin[key]) and value.dtype == twin[key].dtype, key
            else:
                assert value == twin[key], key


def items(dataset):
    return [dataset[k] for k in range(len(dataset))]


def assert_served(decoded, tmp_path, load_it):
    """Items are the plain ones when they are first used and when they come from disk, without being decoded then."""
    plain, folder = items(load_it(None)), tmp_path / "cache"
    assert_same_items(items(load_it(folder)), plain)
    dataset = load_it(folder)
    list(dataset.palette if not dataset.classes.is_binary else [dataset.foreground])  # which compares the masks
    decoded.clear()
    assert_same_items(items(dataset), plain)
    assert decoded == [] and len(files(folder)) == len(plain)


def grey16(rng, size):
    return Image.fromarray(rng.integers(0, 65536, size).astype(np.uint16))


def colour(rng, size):
    return Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8))


@pytest.mark.parametrize("keep_size", [False, True])
@pytest.mark.parametrize("draw", [grey16, colour])
def test_pictures_of_several_raters(decoded, tmp_path, draw, keep_size):
    rng, data = np.random.default_rng(0), tmp_path / "data"
    for number, size in enumerate(SIZES):
        for part in ("images", "masks/a", "masks/b"):
            (data / part).mkdir(parents=True, exist_ok=True)
            picture = draw(rng, size) if part == "images" else Image.fromarray(rng.random(size) < 0.3)
            picture.save(data / part / f"p{number}.png")
    assert_served(decoded, tmp_path, lambda folder: load(data, folder=folder, view=View(keep_size)))


def test_label_maps_of_classes_with_unknown_pixels(decoded, tmp_path, save_palette):
    rng, data = np.random.default_rng(0), tmp_path / "data"
    colours = rng.permutation(768).reshape(256, 3) % 256
    (data / "images").mkdir(parents=True)
    for number, size in enumerate(SIZES):
        colour(rng, size).save(data / "images" / f"p{number}.png")
        labels = rng.choice([0, 1, 2, 255], size)
        save_palette(data / "masks" / f"p{number}.png", labels, colours)
    options = {"classes": "a=1,b=2", "ignore_label": (255,)}
    assert_served(decoded, tmp_path, lambda folder: load(data, folder=folder, **options))
    assert "known" in load(data, folder=tmp_path / "cache", **options)[0]


def test_isic_in_workers_and_in_a_pickled_copy(isic, decoded, tmp_path):
    assert_served(decoded, tmp_path, lambda folder: load(isic, "ISIC", folder=folder))
    plain, dataset = items(load(isic, "ISIC")), load(isic, "ISIC", folder=tmp_path / "cache")
    batch = next(iter(sampling_batches(dataset, [[2, 1]], num_workers=1)))
    assert torch.equal(batch["image"], torch.stack([plain[2]["image"], plain[1]["image"]]))
    assert_same_items(items(pickle.loads(pickle.dumps(dataset))), plain)


def test_changed_files_and_options_are_read_anew_and_old_copies_go(tmp_path, save_picture, decoded):
    data, folder = tmp_path / "data", tmp_path / "cache"
    write_folder(data, 3)
    items(load(data, folder=folder))
    before = files(folder)
    image, mask = sorted((data / "images").iterdir())[0], sorted((data / "masks").iterdir())[1]
    save_picture(image, 255 - np.asarray(Image.open(image)))
    save_picture(mask, np.asarray(Image.open(mask))[::-1])
    assert_same_items(items(load(data, folder=folder)), items(load(data)))
    assert len(files(folder)) == 3 and len(set(files(folder)) & set(before)) == 1
    others = ({"size": 16}, {"ignore_label": (7,)}, {"view": View(soft_masks=False)})
    for options in others:  # other runs, whose items stay beside these
        assert_same_items(items(load(data, folder=folder, **options)), items(load(data, **options)))
    assert len(files(folder)) == 12
    dataset = load(data, folder=folder)
    assert dataset.foreground  # reads a mask, with which the others are compared
    decoded.clear()
    assert len(items(dataset)) == 3 and decoded == []


def test_masks_of_another_foreground_are_refused_although_they_are_cached(tmp_path, save_picture):
    data, folder = tmp_path / "data", tmp_path / "cache"
    write_folder(data, 3)
    items(load(data, folder=folder))
    first = sorted((data / "masks").iterdir())[0]  # with which all others are compared
    save_picture(first, np.asarray(Image.open(first)) // 85)
    with pytest.raises(UserError, match="its foreground is 255, that of .* is 3"):
        items(load(data, folder=folder))


def test_damaged_and_removed_files_of_the_cache_are_made_anew(pictures, tmp_path, truncate):
    folder, plain = tmp_path / "cache", items(load(pictures))
    items(load(pictures, folder=folder))
    paths = [folder / name for name in files(folder)]
    truncate(paths[0])
    paths[1].write_bytes(b"")
    paths[2].unlink()
    sizes = {path: path.stat().st_size for path in paths[3:]}
    assert_same_items(items(load(pictures, folder=folder)), plain)
    assert {path.stat().st_size for path in paths} == set(sizes.values())


def test_the_whole_folder_may_be_removed_during_a_run(pictures, tmp_path, capsys):
    folder, plain = tmp_path / "cache", items(load(pictures))
    dataset = load(pictures, folder=folder)
    items(dataset)
    shutil.rmtree(folder)
    assert_same_items(items(dataset), plain)
    assert len(files(folder)) == len(plain) and "warning" not in capsys.readouterr().out


def other_record(path, record):
    np.save(path, record[["image", "size"]])


def without_shape(path, record):
    np.save(path, record["image"])


def an_archive(path, record):
    with open(path, "wb") as file:
        np.savez(file, record=record)


def too_large(path, record):
    with open(path, "wb") as file:
        header = {"descr": record.dtype.descr, "fortran_order": False, "shape": (10**9,)}
        np.lib.format.write_array_header_1_0(file, header)


def of_objects(path, record):
    np.save(path, np.array([print], object), allow_pickle=True)


def of_another_size(path, record):
    odd = np.zeros(1, [("image", "<f4", (3, 9, 9)), ("size", "<i4", (2,)), ("mask", "u1", (1, 1, 9, 2))])
    np.save(path, odd)


OTHERS = [other_record, without_shape, an_archive, too_large, of_objects, of_another_size]


def test_a_strangers_file_under_the_name_of_an_item_is_made_anew(pictures, tmp_path):
    folder, plain = tmp_path / "cache", items(load(pictures))
    items(load(pictures, folder=folder))
    path = folder / files(folder)[0]
    good, record = path.read_bytes(), np.load(path)
    for write in OTHERS:
        write(path, record)
        assert_same_items(items(load(pictures, folder=folder)), plain)
        assert path.read_bytes() == good, write.__name__


def test_a_damaged_picture_is_named_and_leaves_nothing(tmp_path, truncate):
    data, folder = tmp_path / "data", tmp_path / "cache"
    write_folder(data, 2)
    dataset = load(data, folder=folder)
    truncate(dataset.cases[0].images[0])
    with pytest.raises(UserError, match=r"\.\w+: is truncated or damaged"):
        dataset[0]
    assert files(folder) == []


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def nearly_full(_):
    return shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9)


@pytest.mark.parametrize("where, name, fail", [(np, "save", full), (shutil, "disk_usage", nearly_full)])
def test_without_room_items_are_decoded_at_each_use_and_one_line_says_so(
    pictures, tmp_path, monkeypatch, capsys, where, name, fail
):
    folder, plain = tmp_path / "cache", items(load(pictures))
    dataset = load(pictures, folder=folder)
    monkeypatch.setattr(where, name, fail)
    assert_same_items(items(dataset) + items(dataset), plain + plain)
    out = capsys.readouterr().out
    assert out.count("warning:") == 1 and "decoded at each use (--cache_dir)" in out and str(folder) in out
    assert files(folder) == []


def test_a_folder_that_cannot_be_written_to_is_an_error_only_where_it_was_named(pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    dataset = load(pictures)
    with pytest.raises(UserError, match="file/cache: cannot be written to .*--cache_dir"):
        use_picture_cache(dataset, tmp_path / "file" / "cache")
    use_picture_cache(dataset, tmp_path / "file" / "cache", asked=False)
    assert "each picture is decoded at each use" in capsys.readouterr().out and dataset.pictures is None


def test_a_filled_folder_that_cannot_be_written_to_is_read(pictures, tmp_path, capsys, decoded, monkeypatch):
    """That of a colleague, or one on a disk that is full by now."""
    folder, plain = tmp_path / "cache", items(load(pictures))
    items(load(pictures, folder=folder))
    (folder / sorted(files(folder))[0]).unlink()
    monkeypatch.setattr(picture_cache, "check_writable", lambda *_: check_writable(dataset.cases[0].images[0]))
    dataset = load(pictures)
    use_picture_cache(dataset, folder)
    assert "warning:" in (line := capsys.readouterr().out) and "not in it are decoded at each use" in line
    assert dataset.foreground
    decoded.clear()
    assert_same_items(items(pickle.loads(pickle.dumps(dataset))), plain)
    assert len(decoded) > 0 and len(files(folder)) == len(plain) - 1


def _use(data, folder, barrier):
    dataset = load(data, folder=folder)
    barrier.wait()
    items(dataset)


def test_several_processes_fill_one_folder_at_once(pictures, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    children = [context.Process(target=_use, args=(pictures, tmp_path / "cache", barrier)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert_same_items(items(load(pictures, folder=tmp_path / "cache")), items(load(pictures)))
    assert len(files(tmp_path / "cache")) == 4


def test_volumes_stay_with_their_own_cache(brats, volumes, tmp_path, save_nifti):
    for dataset in (load(brats, "BRATS"), load(volumes(np.ones((16, 14, 6), np.int16)))):
        use_picture_cache(dataset, tmp_path / "cache")
        assert dataset.pictures is None and not (tmp_path / "cache").exists()


# ---- a loader of the user's own ------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path, pictures):
    """A function (more lines of the class) -> the name of a loader in a file, which is written anew."""
    for number in range(2):
        folder = tmp_path / "own" / f"case{number}"
        folder.mkdir(parents=True)
        for part, name in (("images", "photo.png"), ("masks", "truth.png")):
            Image.open(sorted((pictures / part).iterdir())[number]).save(folder / name)

    def write(lines=""):
        path = tmp_path / "mine.py"
        if not path.is_file() or path.read_text() != LOADER + lines:
            path.write_text(LOADER + lines)
        return f"{path}:Polyps"

    return write


def test_a_loader_of_ones_own_is_cached_where_it_says_so(own, tmp_path, decoded, capsys):
    data, folder = tmp_path / "own", tmp_path / "cache"
    use_picture_cache(load(data, own()), folder)
    assert "cache: none; Polyps sets no cache_version" in capsys.readouterr().out and not folder.exists()
    version = "    cache_version = '1'\n"
    assert_served(decoded, tmp_path, lambda folder: load(data, own(version), folder=folder))
    darker = version + "    def normalise(self, image):\n        return image / 255\n"  # the file is in the key
    assert_same_items(items(load(data, own(darker), folder=folder)), items(load(data, own(darker))))
    assert load(data, own(darker), folder=folder)[0]["image"].min() >= 0 and len(files(folder)) == 2
    heir = version + "class Heir(Polyps):\n    pass\n"
    dataset = load(data, own(heir).replace("Polyps", "Heir"), folder=folder)
    assert dataset.pictures is None  # what it adds may depend on more


# ---- by the scripts ------------------------------------------------------------------------------------------------


def test_training_keeps_its_pictures(train, pictures, tmp_path, capsys):
    folder = tmp_path / "cache"
    train("FOLDER", pictures, f"--cache_dir {folder}")
    assert f"cache: 4 pictures, each decoded once, at its first use, into {folder}, up to" in capsys.readouterr().out
    assert len(files(folder)) == 4


def test_files_that_a_killed_run_left_go_after_a_day(pictures, tmp_path):
    place = tmp_path / "cache" / "ab"
    place.mkdir(parents=True)
    for name, age in ((".old.12.npy", 2 * picture_cache.IDLE_SECONDS), (".young.13.npy", 60)):
        (place / name).write_bytes(b"half")
        os.utime(place / name, (os.stat(place).st_mtime - age,) * 2)
    use_picture_cache(load(pictures), tmp_path / "cache")
    assert [path.name for path in place.iterdir()] == [".young.13.npy"]
