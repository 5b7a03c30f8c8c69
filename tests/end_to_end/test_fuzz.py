"""Files of every kind that the program reads, damaged at random: the reader succeeds or raises a `UserError`.

The doors are the functions behind the scripts, called as the scripts call them. The seeds are fixed.
"""

import json
import random
import shutil
import traceback

import numpy as np
import pytest
from conftest import FAST, TINY, words, write_folder
from helpers import TRAIN
from PIL import Image

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.config.command_line import parse
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.inference.segmenter import Segmenter
from guided_diffusion.io.files import read_npz, read_npz_headers
from guided_diffusion.io.images import read_picture, read_picture_labels, read_picture_mask
from guided_diffusion.io.nifti import nifti_geometry, read_nifti, read_nifti_labels
from guided_diffusion.report.training_page import write_training_page
from guided_diffusion.runtime.errors import UserError

MUTATIONS = 16  # of each kind of file
ODD = (
    ["null", "true", "{}", "[]", "-1", "0.5", "1e999", "NaN", '"../../x"', '"/etc/passwd"', '""', '"\\u0000"']
    + ["9" * 40, "9" * 5000, "2020-13-01", "[" * 3000, '{"a":' * 500, "&a [*a]", "!!python/object:os.system {}", ":"]
    + ["\t", "\ud800", "=1+1", "٣", "１２", "0x10", "1_000", "on", "~", "- -", "\r", "﻿"]
)
ODD_NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\x80\x7f")


def damaged(data, rng, is_text):
    """The bytes of a file, changed in one to three random places. rng: a `random.Random`."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(data)) if data else 0
        length = rng.choice((1, 2, 8, 100))
        how = rng.choice(("bit", "byte", "cut", "remove", "repeat", "noise", "odd") + ("odd",) * 6 * is_text)
        if how == "bit" and data:
            data[place] ^= 1 << rng.randrange(8)
        elif how == "byte" and data:
            data[place] = rng.choice((0, 1, 127, 128, 255))
        elif how == "cut":
            del data[place:]
        elif how == "remove":
            del data[place : place + length]
        elif how == "repeat":
            data[place:place] = data[place : place + length] * rng.choice((1, 50))
        elif how == "noise":
            data[place : place + length] = rng.randbytes(length)
        elif is_text:
            data = bytearray(_with_odd_token(bytes(data), rng))
        else:
            data[place : place + 4] = rng.choice(
                (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\x80\x7f")
            )
    return bytes(data)


def _with_odd_token(data, rng):
    """A text with one of its values, keys or separators replaced by a token of `ODD`."""
    text = data.decode(errors="surrogateescape")
    starts = [place for place in range(len(text)) if place == 0 or text[place - 1] in ' ,:[{\n"']
    start = rng.choice(starts or [0])
    end = next((place for place in range(start, len(text)) if text[place] in ',:]}\n"'), len(text))
    return (text[:start] + rng.choice(ODD) + text[end:]).encode(errors="surrogatepass")


# ---- the kinds of files --------------------------------------------------------------------------------------------


def picture(suffix, mode="RGB"):
    """A picture as image and as mask."""

    def make(folder):
        values = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
        image = Image.fromarray(values if mode == "RGB" else (values[..., 0] > 99).astype(np.uint8) * 255)
        image = image.convert(mode)
        image.save(path := folder / f"a{suffix}")
        return path

    def read(path):
        for reader in (read_picture, read_picture_mask, read_picture_labels):
            attempt(lambda reader=reader: reader(path))

    return make, read


def volume(suffix):
    def make(folder):
        import nibabel

        values = np.random.default_rng(0).integers(0, 3, (6, 5, 4)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 2, 3, 1])), path := folder / f"a{suffix}")
        return path

    def read(path):
        for reader in (read_nifti, read_nifti_labels, nifti_geometry):
            attempt(lambda reader=reader: reader(path))

    return make, read


def archive(folder):
    np.savez_compressed(path := folder / "a.npz", image=np.arange(60.0).reshape(5, 12), mask=np.ones((3, 4), bool))
    return path


def read_archive(path):
    attempt(lambda: read_npz_headers(path))
    attempt(lambda: read_npz(path, "image"))
    attempt(lambda: read_npz(path, "mask"))


def data_set(data_name, write):
    """A text file among pictures or volumes. write: a function (folder) that returns its path."""

    def read(path):
        dataset = build_dataset(data_name, path.parent, 8, split="train", need_masks=True)
        dataset.load_item(0)

    return write, read


def split_file(folder):
    write_folder(folder, 3)
    path = folder / "split.json"
    path.write_text(json.dumps({"train": ["case0", "case1.png"], "val": ["case2"], "note": "x"}))
    return path


def label_table(folder):
    write_folder(folder, 3)
    path = folder / "labels.csv"
    path.write_text("name,label\ncase0,good\ncase1,bad\ncase2,good\n")
    return path


def decathlon(folder):
    import nibabel

    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
        for number in range(2):
            values = (np.indices((8, 8, 3))[0] > 3 + number).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / part / f"hip_{number}.nii.gz")
    listed = [{"image": f"./imagesTr/hip_{n}.nii.gz", "label": f"./labelsTr/hip_{n}.nii.gz"} for n in range(2)]
    content = {"name": "hip", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "hip"}, "training": listed}
    path = folder / "dataset.json"
    path.write_text(json.dumps(content | {"numTraining": 2, "test": [], "tensorImageSize": "3D"}))
    return path


def config_file(folder):
    path = folder / "run.yaml"
    path.write_text("data_name: ISIC\nimage_size: 64\nchannel_mult: 1,2\nlr: 1.0e-4\nclass_cond: true\nseed: 3\n")
    return path


def read_checkpoint(path):
    """As sampling, resuming and a notebook do."""
    attempt(lambda: Segmenter.load(path, members=1, steps=1, device="cpu"))
    attempt(lambda: load_checkpoint(path, to_train=True).build())


# ---- what is written by the program --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(script, trained, pictures, tmp_path_factory):
    """A results folder with an evaluation, of the checkpoint `trained`."""
    out = tmp_path_factory.mktemp("fuzz") / "results"
    script("segmentation_sample", ["--model_path", trained, "--data_dir", pictures, "--out_dir", out, FAST])
    script("segmentation_eval", ["--pred_dir", out])
    return out


@pytest.fixture
def written(results, trained, pictures, script, tmp_path):
    """{kind: (make, read)} of the files that training, sampling and evaluation write and read again."""
    copy = tmp_path / "results"

    def copied(name):
        def make(_):
            shutil.copytree(results, copy, dirs_exist_ok=True)
            return copy / name

        return make

    def rerun(_):
        line = ["--model_path", trained, "--data_dir", pictures, "--out_dir", copy, FAST]
        attempt(lambda: script("segmentation_sample", line))
        attempt(lambda: script("segmentation_eval", ["--pred_dir", copy]))

    def compared(_):
        script("segmentation_eval", ["--pred_dir", results, "--compare", copy, "--out_dir", tmp_path / "compared"])

    def resumed(_):
        line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", copy.parent / "run", TINY, "--max_steps 2"]
        script("segmentation_train", [*line, "--resume_checkpoint auto --lr 1e-2"])

    def run_file(name):
        def make(_):
            shutil.copytree(trained.parent, copy.parent / "run", dirs_exist_ok=True)
            return copy.parent / "run" / name

        return make

    def training_page(path):
        write_training_page(path.parent, {"train": {}, "model": {}}, 2)

    return {
        "manifest": (copied("manifest.json"), rerun),
        "scores": (copied("metrics.csv"), compared),
        "mask": (copied("masks/case0.png"), compared),
        "log": (run_file("log.jsonl"), training_page),
        "checkpoint": (run_file("model000002.pt"), read_checkpoint),
        "resumed": (run_file("model000002.pt"), resumed),
    }


MADE = {
    "png": picture(".png"),
    "palette": picture(".png", "P"),
    "one bit": picture(".tif", "1"),
    "jpeg": picture(".jpg"),
    "tiff": picture(".tif"),
    "gif": picture(".gif", "L"),
    "bmp": picture(".bmp"),
    "webp": picture(".webp"),
    "nifti": volume(".nii"),
    "packed nifti": volume(".nii.gz"),
    "archive": (archive, read_archive),
    "split.json": data_set("FOLDER", split_file),
    "labels.csv": data_set("FOLDER", label_table),
    "dataset.json": data_set("MSD", decathlon),
    "config": (config_file, lambda path: parse("", TRAIN, words(["--config", path]))),
}
WRITTEN = ("manifest", "scores", "mask", "log", "checkpoint", "resumed")
TEXTS = ("split.json", "labels.csv", "dataset.json", "config", "manifest", "scores", "log")


def attempt(read):
    """Call `read`; a `UserError` of one line is as good as success."""
    try:
        read()
    except UserError as error:
        assert str(error) and "\n" not in str(error), repr(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*MADE, *WRITTEN])
def test_a_damaged_file_is_read_or_refused(kind, tmp_path, written, capsys):
    make, read = (MADE | written)[kind]
    (folder := tmp_path / "made").mkdir()
    path = make(folder)
    intact, failures = path.read_bytes(), []
    read(path)  # the intact file is read
    for number in range(MUTATIONS):
        path.write_bytes(damaged(intact, random.Random(f"{kind} {number}"), kind in TEXTS))
        try:
            attempt(lambda: read(path))
        except Exception as error:
            failures.append((number, traceback.format_exc(limit=-3), type(error)))
    assert not failures, f"{len(failures)} of {MUTATIONS}: {failures[0][1]}"
