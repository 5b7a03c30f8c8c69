"""The cache of volumes on disk: the same values, made once, whole, by whoever comes first, and anew when stale."""

import multiprocessing
import os
import pickle
import re
import shutil
import time

import numpy as np
import pytest
import torch
from conftest import FAST

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.data import volume_cache as volume_store
from guided_diffusion.data import volumes
from guided_diffusion.data.batches import sampling_batches
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.volume_cache import chosen_folder, fingerprint, use_cache
from guided_diffusion.io.nifti import read_nifti, write_nifti
from guided_diffusion.runtime.errors import UserError


@pytest.fixture
def data(brats, tmp_path):
    """A copy of the phantoms, two volumes of four modalities and their truth, to be changed at will."""
    return shutil.copytree(brats, tmp_path / "data")


def load(folder, **options):
    return build_dataset("BRATS", folder, 16, **{"split": "train", "need_masks": True, **options})


def cached(folder, data, **options):
    dataset = load(data)
    use_cache(dataset, folder, show=False, **options)
    return dataset


def assert_same_items(one, other):
    for item, twin in zip(one, other, strict=True):
        assert item.keys() == twin.keys() and item["name"] == twin["name"]
        assert torch.equal(item["image"], twin["image"]) and torch.equal(item["mask"], twin["mask"])


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_items_are_those_without_a_cache_and_nothing_is_decoded_any_more(data, tmp_path, reads):
    plain = [load(data)[k] for k in range(6)]
    folder = tmp_path / "cache"
    cached(folder, data, workers=2)
    assert len(entries(folder)) == 2 * 2 and all(name.endswith(".npy") for name in entries(folder))
    reads.clear()
    dataset = cached(folder, data)
    assert_same_items([dataset[k] for k in range(6)], plain)
    assert reads == []
    batches = sampling_batches(dataset, [[0, 3], [5, 1]], num_workers=2)  # the workers map the same files
    assert torch.equal(torch.cat([batch["image"] for batch in batches])[2], plain[5]["image"])
    assert_same_items([pickle.loads(pickle.dumps(dataset))[4]], plain[4:5])


def test_slices_are_mapped_not_read_whole(data, tmp_path):
    dataset = cached(tmp_path / "cache", data)
    array = dataset.volumes.store.get(dataset.volumes.entries(dataset.cases[0], False)[0])
    assert isinstance(array, np.memmap) and array.shape == (3, 4, 32, 32) and not array.flags.writeable
    with open(array.filename, "rb") as file:
        assert array.offset % 64 == 0 and file.read(6) == b"\x93NUMPY"


def test_what_a_killed_process_left_half_written_goes_after_a_day(data, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, age in ((".old-1-2.77.npy", 2 * 24 * 3600), (".young-1-2.78.npy", 60)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    cached(folder, data)
    assert [name for name in entries(folder) if name.startswith(".")] == [".young-1-2.78.npy"]


def change(path, value):
    values, affine, _ = read_nifti(path)
    values[8:20, 8:20] = value
    write_nifti(path, values.astype(np.float32), affine)


@pytest.mark.parametrize("kind", ["flair", "seg"])
def test_a_changed_file_is_read_anew_and_its_old_copy_goes(data, tmp_path, kind):
    folder = tmp_path / "cache"
    cached(folder, data)
    before = entries(folder)
    path = next(data.glob(f"training/*/*_{kind}.nii.gz"))
    change(path, 1)
    os.utime(path, (1e9, 1e9))  # it is the content that counts
    dataset = cached(folder, data)
    assert_same_items([dataset[k] for k in range(6)], [load(data)[k] for k in range(6)])
    assert len(entries(folder)) == 4 and len(set(entries(folder)) & set(before)) == 3


def test_a_touched_file_is_still_known(data, tmp_path, reads):
    cached(tmp_path / "cache", data)
    for path in data.rglob("*.gz"):
        path.touch()
    reads.clear()
    cached(tmp_path / "cache", data)
    assert reads == []


def test_other_settings_make_it_stale(data, tmp_path, reads, monkeypatch):
    cached(tmp_path / "cache", data)
    monkeypatch.setattr(volumes, "DECODED", "other")
    reads.clear()
    cached(tmp_path / "cache", data)
    assert len(reads) == 10 and len(entries(tmp_path / "cache")) == 4


def test_the_fingerprint_tells_files_apart(tmp_path):
    rng, prints = np.random.default_rng(0), set()
    content = rng.bytes(100_000)
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).write_bytes(content)
        prints.add(fingerprint(tmp_path / name))
    assert len(prints) == 1  # a copy
    (tmp_path / "c.nii.gz").write_bytes(content[:-1] + b"x")
    (tmp_path / "d.nii.gz").write_bytes(content[:-1])
    (tmp_path / "e.nii.gz").write_bytes(b"")
    prints |= {fingerprint(tmp_path / f"{name}.nii.gz") for name in "cde"}
    (tmp_path / "f.nii").write_bytes(content)
    prints.add(fingerprint(tmp_path / "f.nii"))
    (tmp_path / "f.nii").write_bytes(content[:20_000] + b"?" + content[20_001:])  # may lie between the places
    prints.add(fingerprint(tmp_path / "f.nii"))
    assert len(prints) == 6


def test_what_is_half_written_or_removed_is_made_anew(data, tmp_path, truncate):
    folder, plain = tmp_path / "cache", [load(data)[k] for k in range(6)]
    cached(folder, data)
    paths = sorted(folder.iterdir())
    truncate(paths[0])
    paths[1].write_bytes(b"")
    dataset = cached(folder, data)
    paths[2].unlink()  # while it is in use
    assert_same_items([dataset[k] for k in range(6)], plain)


@pytest.mark.parametrize("reason", [(28, "No space left on device"), ("12000 requested and 4 written",)])
def test_a_failed_write_leaves_nothing(data, tmp_path, monkeypatch, reason):
    def fail(file, array):
        with open(file, "wb") as broken:
            broken.write(b"half")
        raise OSError(*reason)

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(UserError, match="cache: is full; make room there or choose another --cache_dir"):
        cached(tmp_path / "cache", data)
    assert entries(tmp_path / "cache") == []


def _fill(folder, data, barrier):
    barrier.wait()
    dataset = cached(folder, data)
    assert all(dataset[k]["image"].isfinite().all() for k in range(6))


def test_several_processes_fill_one_folder_at_once(data, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    children = [context.Process(target=_fill, args=(tmp_path / "cache", data, barrier)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    dataset = cached(tmp_path / "cache", data)
    assert_same_items([dataset[k] for k in range(6)], [load(data)[k] for k in range(6)])
    assert len(entries(tmp_path / "cache")) == 4


def test_few_files_are_open_at_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(volume_store, "OPEN_FILES", 1)
    dataset = cached(tmp_path / "cache", data)
    for index in (0, 3, 1, 4):
        dataset[index]
    assert dataset.volumes.store._maps.used == 1


def test_what_a_killed_run_left_goes_after_a_day(data, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, age in ((".old.12.npy", 2 * 24 * 3600), (".young.13.npy", 60)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    cached(folder, data)
    assert not (folder / ".old.12.npy").exists() and (folder / ".young.13.npy").exists()


def test_a_disk_without_room_is_reported_before_anything_is_decoded(data, tmp_path, reads, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    needed = 2 * 3 * 32 * 32 * (4 * 2 + 1)
    with pytest.raises(UserError, match=rf"cache: has 1e-06 MB free, the volumes need {needed / 1e6:.2g} MB; choose"):
        cached(tmp_path / "cache", data)
    assert reads == []


def test_a_damaged_file_is_named_before_training(data, tmp_path, truncate):
    truncate(next(data.glob("training/*/*_t2.nii.gz")))
    with pytest.raises(UserError, match="_t2.nii.gz: is truncated or damaged"):
        cached(tmp_path / "cache", data)


def test_which_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDSEGDIFF_CACHE", str(tmp_path))
    assert chosen_folder("auto", training=True) == tmp_path / "volumes"
    assert chosen_folder("auto", training=False) is None
    assert chosen_folder("none", training=True) is None
    assert str(chosen_folder("/elsewhere", training=False)) == "/elsewhere"


# ---- by the scripts ----------------------------------------------------------------------------------------------


def test_training_and_sampling_are_the_same_with_and_without(data, train, sample, script, tmp_path, capsys, reads):
    path = train("BRATS", data, f"--cache_dir {tmp_path / 'cache'}")
    out = capsys.readouterr().out
    assert re.search(r"cache: 2 volumes of 2 to be decompressed, once, into .*cache: 0\.055 MB \(--cache_dir\)", out)
    assert len(entries(tmp_path / "cache")) == 4 and sorted(reads) == sorted(set(reads))
    (tmp_path / "run").rename(tmp_path / "with")
    plain = load_checkpoint(train("BRATS", data, "--cache_dir none"))
    kept = load_checkpoint(tmp_path / "with" / path.name)
    assert all(torch.equal(value, plain.model[name]) for name, value in kept.model.items())
    assert plain.config["data"]["cache_dir"] == "none"

    checkpoint = tmp_path / "with" / path.name
    masks = []
    for name, flags in (("a", ""), ("b", f"--cache_dir {tmp_path / 'other'}")):
        results = sample(checkpoint, data, f"{FAST} {flags} --save_samples True", out=name)
        masks.append({file.name: read_nifti(file)[0] for file in sorted(results.glob("*.nii.gz"))})
    assert masks[0].keys() == masks[1].keys() and len(masks[0]) > 4
    assert all(np.array_equal(value, masks[1][name]) for name, value in masks[0].items())
    assert len(entries(tmp_path / "other")) == 2  # the test volume and, for its evaluation, the truth


def test_a_folder_that_cannot_be_written_to(refusal, brats, tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(
        "segmentation_train",
        ["--data_dir", brats, "--image_size 32 --num_channels 8 --channel_mult 1,2 --num_workers 0 --out_dir"]
        + [tmp_path / "run", "--cache_dir", tmp_path / "file" / "below"],
    )
    assert "file/below: cannot be written to" in message and "--cache_dir" in message
    assert "--cache_dir gs://b/c: must be a local path" in refusal("segmentation_train", "--cache_dir gs://b/c")
