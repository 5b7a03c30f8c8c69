"""Images that cannot be read while sampling: told, left out, and the rest is there as if they were not."""

import shutil
from pathlib import Path

import processes
import pytest
from conftest import FAST, files, messages, rows, strict_json, write_folder

from guided_diffusion.runtime.errors import run_script

ONE_BY_ONE = f"{FAST} --batch_size 1 --save_samples True"


@pytest.fixture
def bad(tmp_path):
    """A FOLDER data set of four pictures to be damaged."""
    write_folder(tmp_path / "bad", 4)
    return tmp_path / "bad"


@pytest.fixture
def run(script, capsys, tmp_path):
    """A function (checkpoint, folder, flags) that samples to `results`: status, warnings of unread cases, errors."""

    def call(checkpoint, folder, flags=ONE_BY_ONE, out=None):
        capsys.readouterr()
        where = ["--model_path", checkpoint, "--data_dir", folder, "--out_dir", out or tmp_path / "results"]
        with pytest.raises(SystemExit) as end:
            run_script(lambda: script("segmentation_sample", [*where, flags]))
        said = capsys.readouterr()
        told = [line for line in said.out.splitlines() if "goes on without it" in line]
        return end.value.code, told, [line for line in messages(said.err) if not line.startswith("fetching")]

    return call


def manifest_of(folder):
    return strict_json(folder / "manifest.json")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_other_pictures_are_sampled_as_if_it_were_not_there(run, trained, bad, truncate, tmp_path, workers):
    whole, results = tmp_path / "whole", tmp_path / "results"
    assert run(trained, bad, out=whole) == (0, [], [])
    path = truncate(bad / "images" / "case1.png")
    flags = f"{ONE_BY_ONE} --num_workers {workers}"
    status, told, errors = run(trained, bad, flags)
    assert status == 1 and len(told) == 1
    assert told[0].startswith(f"warning: case1: goes on without it: {path}: is truncated or damaged")
    assert errors == [
        "error: 1 of 4 cases could not be sampled and has no mask: case1; repair it, then the same command samples it"
    ]
    assert not [name for name in files(results) if "case1" in name]
    for name in files(results):
        if name.endswith(".png"):
            assert (results / name).read_bytes() == (whole / name).read_bytes(), name
    assert [row["name"] for row in rows(results)] == ["case0", "case2", "case3"] and (results / "report.html").exists()
    manifest = manifest_of(results)
    assert (manifest["status"], manifest["unread"]) == ("incomplete", ["case1"])
    assert (manifest["cases"], manifest["cases_sampled"]) == (4, 3)

    assert run(trained, bad, flags)[0] == 1 and manifest_of(results)["cases_sampled"] == 3
    write_folder(tmp_path / "again", 4)
    shutil.copy(tmp_path / "again" / "images" / "case1.png", path)
    assert run(trained, bad, flags) == (0, [], [])
    manifest = manifest_of(results)
    assert manifest["status"] == "complete" and "unread" not in manifest and manifest["cases_sampled"] == 4
    assert (results / "masks" / "case1.png").read_bytes() == (whole / "masks" / "case1.png").read_bytes()


def test_several_in_a_batch_the_first_among_them(run, trained, bad, truncate, script, tmp_path):
    for name in ("case0", "case2"):
        truncate(bad / "images" / f"{name}.png")
    status, told, errors = run(trained, bad, FAST)
    assert status == 1 and [line.split(": ")[1] for line in told] == ["case0", "case2"]
    assert errors == [
        "error: 2 of 4 cases could not be sampled and have no mask: case0, case2; repair them, then the same command "
        "samples them"
    ]
    assert files(tmp_path / "results" / "masks") == ["case1.png", "case3.png"]
    script("segmentation_eval", ["--pred_dir", tmp_path / "results"])
    assert [row["name"] for row in rows(tmp_path / "results")] == ["case1", "case3"]


def test_where_none_can_be_read_the_first_ones_line_ends_it(run, trained, bad, truncate, tmp_path):
    for path in (bad / "images").iterdir():
        truncate(path)
    status, _, errors = run(trained, bad)
    assert status == 2 and len(errors) == 1 and "images/case0.png: is truncated or damaged" in errors[0]
    write_folder(tmp_path / "other", 2)
    (tmp_path / "own.py").write_text(OWN.replace("NAME", "case"))
    status, told, errors = run(trained, tmp_path / "other", f"{FAST} --data_name {tmp_path / 'own.py'}:Own")
    assert status == 2 and len(told) == 2 and len(errors) == 1
    assert errors[0].startswith("error: none of 2 cases could be sampled; the first: case case0: ")
    assert f"{tmp_path / 'own.py'}, line 6, read_image: IndexError: case0; python" in errors[0]
    assert manifest_of(tmp_path / "results")["status"] == "running"


OWN = """from guided_diffusion.data.loaders.folder import FolderDataset

class Own(FolderDataset):
    def read_image(self, case):
        if "NAME" in case.name:
            raise IndexError(case.name)
        return super().read_image(case)
"""


def test_an_exception_of_ones_own_loader_and_of_the_system(run, trained, bad, tmp_path):
    (tmp_path / "own.py").write_text(OWN.replace("NAME", "case3"))
    flags = f"{FAST} --data_name {tmp_path / 'own.py'}:Own"
    status, told, errors = run(trained, bad, flags)
    assert status == 1 and "has no mask: case3; " in errors[0]
    assert told == [
        f"warning: case3: goes on without it: case case3: {tmp_path / 'own.py'}, line 6, read_image: IndexError: "
        "case3; python scripts/check_data.py tries every case"
    ]
    (tmp_path / "own.py").write_text(
        OWN.replace("NAME", "case3").replace("raise IndexError(case.name)", "open('/no/x')")
    )
    _, told, _ = run(trained, bad, flags)
    assert told == ["warning: case3: goes on without it: /no/x: No such file or directory"]


@pytest.mark.parametrize("flags", ["--num_workers 0", "--num_workers 2", "--cache_dir CACHE"])
def test_a_volume_is_left_out_as_a_whole(run, train, brats, truncate, tmp_path, flags):
    data = tmp_path / "volumes"
    shutil.copytree(brats / "training", data)
    checkpoint = train("BRATS", data)
    truncate(data / "BraTS2021_00000" / "BraTS2021_00000_t2.nii.gz")
    status, told, errors = run(checkpoint, data, f"{ONE_BY_ONE} {flags.replace('CACHE', str(tmp_path / 'cache'))}")
    assert status == 1 and len(told) == 1 and "BraTS2021_00000_t2.nii.gz: is truncated or damaged" in told[0]
    assert "1 of 2 cases could not be sampled and has no mask: BraTS2021_00000; " in errors[0]
    results = tmp_path / "results"
    assert (results / "BraTS2021_00001_seg.nii.gz").exists() and len(rows(results)) == 1
    assert not [name for name in files(results) if "BraTS2021_00000" in name]


def test_a_volume_without_its_header_does_not_cost_the_others(run, train, brats, script, capsys, tmp_path):
    data, results = tmp_path / "volumes", tmp_path / "results"
    shutil.copytree(brats / "training", data)
    checkpoint = train("BRATS", data)
    headers = [data / f"BraTS2021_0000{n}" / f"BraTS2021_0000{n}_t2.nii.gz" for n in (0, 1)]
    headers[0].write_bytes(b"")
    status, told, errors = run(checkpoint, data)
    assert status == 1 and len(told) == 1 and f"{headers[0]}: is truncated or damaged: it is empty" in told[0]
    assert "1 of 2 cases could not be sampled and has no mask: BraTS2021_00000; " in errors[0]
    assert (results / "BraTS2021_00001_seg.nii.gz").exists() and len(rows(results)) == 1
    script("segmentation_eval", ["--pred_dir", results])
    assert [row["name"] for row in rows(results)] == ["BraTS2021_00001"]
    headers[1].write_bytes(b"")
    status, _, errors = run(checkpoint, data, out=tmp_path / "none")
    assert status == 2 and "it is empty" in errors[0] and not (tmp_path / "none").exists()


STACKS = """
import numpy as np
from guided_diffusion.data import Case, Geometry, SegmentationDataset

class Stack(SegmentationDataset):
    def find_cases(self):
        path = (self.data_dir / "stack.bin",)
        return [Case(f"{v}_{k}", path, volume=v, slice_index=k) for v in "vw" for k in range(6)]

    def read_image(self, case):
        if case.name == "v_3":
            raise EOFError
        return np.full((3, 32, 32), case.slice_index, np.float32)

    def geometry(self, case):
        return Geometry(np.eye(4), (1, 1, 1), (32, 32, 6))
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_of_a_volume_that_was_begun_nothing_stays(run, trained, tmp_path, workers):
    (tmp_path / "stacks.py").write_text(STACKS)
    (tmp_path / "data").mkdir()
    flags = f"{ONE_BY_ONE} --num_workers {workers} --debug True --data_name {tmp_path / 'stacks.py'}:Stack"
    status, told, errors = run(trained, tmp_path / "data", flags)
    assert status == 1 and "1 of 2 cases could not be sampled and has no mask: v; " in errors[0]
    assert len(told) == 1 and told[0].startswith("warning: v: goes on without it: case v_3: ") and "EOFError" in told[0]
    names = files(tmp_path / "results")
    assert "w_seg.nii.gz" in names and "debug/w_5.gif" in names
    assert not [name for name in names if Path(name).name.startswith("v_")]


def test_each_process_tells_of_its_own_share_and_the_first_sums_up(trained, bad, truncate, tmp_path):
    for name in ("case1", "case2"):  # of the second process, and of the first
        truncate(bad / "images" / f"{name}.png")
    where = ["--model_path", str(trained), "--data_dir", str(bad), "--out_dir", str(tmp_path / "results")]
    started = processes.start_ranks(2, processes.sample, [*where, *ONE_BY_ONE.split()], folder=tmp_path)
    ended = processes.finish(started, tmp_path)
    assert ended.statuses[0] == 1
    printed = "".join(ended.outputs)
    for name in ("case1", "case2"):
        assert printed.count(f"warning: {name}: goes on without it: ") == 1
    assert printed.count("error: 2 of 4 cases could not be sampled and have no mask: case1, case2; repair them") == 1
    assert files(tmp_path / "results" / "masks") == ["case0.png", "case3.png"] and len(rows(tmp_path / "results")) == 2
    assert manifest_of(tmp_path / "results")["unread"] == ["case1", "case2"]


def test_in_a_store(run, trained, bad, truncate, blobs):
    shutil.copytree(bad, blobs.local("gs://bucket/data"))
    truncate(Path(blobs.local("gs://bucket/data/images/case1.png")))
    status, told, errors = run(trained, "gs://bucket/data", out="gs://bucket/out")
    there = Path(blobs.local("gs://bucket/out"))
    assert status == 1 and len(told) == len(errors) == 1 and "has no mask: case1; " in errors[0]
    assert files(there / "masks") == ["case0.png", "case2.png", "case3.png"]
    assert manifest_of(there)["status"] == "incomplete" and manifest_of(there)["unread"] == ["case1"]
    shutil.copy(bad / "images" / "case1.png", blobs.local("gs://bucket/data/images/case1.png"))
    assert run(trained, "gs://bucket/data", out="gs://bucket/out") == (0, [], [])
    assert len(files(there / "masks")) == 4 and manifest_of(there)["status"] == "complete"


def test_check_data_tells_of_a_damaged_first_picture_and_volume(script, bad, brats, truncate, tmp_path, capsys):
    truncate(bad / "images" / "case0.png")
    out = ["--num_workers 0 --out_dir", tmp_path / "checked", "--cache_dir", tmp_path / "cache"]
    assert script("check_data", ["--data_dir", bad, *out]) == 1
    assert f"error: all: {bad / 'images' / 'case0.png'}: is truncated or damaged" in capsys.readouterr().out
    shutil.copytree(brats, tmp_path / "volumes")
    path = truncate(tmp_path / "volumes/training/BraTS2021_00001/BraTS2021_00001_t2.nii.gz")
    assert script("check_data", ["--data_dir", tmp_path / "volumes", *out]) == 1
    assert f"error: train: {path}: is truncated or damaged" in capsys.readouterr().out
