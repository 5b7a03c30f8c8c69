"""Bad input at every door: one line that names the culprit, a non-zero exit status, nothing written.

A row is a door, what is spoilt, and the words of the line. `spoil` is a function of a `Place`, or flags alone.
"""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import FAST, TINY, files, messages, write_folder
from PIL import Image
from volume_files import write_series, write_slice, write_volume_as

from guided_diffusion.inference.segmenter import Segmenter
from guided_diffusion.runtime.errors import UserError, run_script


class Place:
    """A folder with data, a task of the Decathlon, a run and results, made when a row asks for them."""

    def __init__(self, root, trained, results):
        self.root, self.out, self._trained, self._results = root, root / "out", trained, results
        self.flags = ""

    def _once(self, name, make):
        path = self.root / name
        if not path.exists():
            make(path)
        return path

    @property
    def data(self):
        """A FOLDER data set of three pictures."""
        return self._once("data", lambda path: write_folder(path, 3))

    @property
    def task(self):
        """A data set of the Medical Segmentation Decathlon with two volumes."""
        return self._once("task", write_task)

    @property
    def scans(self):
        """A FOLDER data set of volumes: NRRD, MetaImage and a DICOM series."""
        return self._once("scans", write_scans)

    @property
    def run(self):
        return self._once("run", lambda path: shutil.copytree(self._trained.parent, path))

    @property
    def checkpoint(self):
        return self.run / "model000002.pt"

    @property
    def results(self):
        return self._once("results", lambda path: shutil.copytree(self._results, path))

    def make(self):
        """Write the data sets, one of whose files is then spoilt."""
        return self.data, self.task, self.scans

    @property
    def image(self):
        return self.data / "images" / "case1.png"

    @property
    def volume(self):
        return self.task / "imagesTr" / "hip_1.nii.gz"

    def change_checkpoint(self, change):
        """Write the checkpoint anew after `change(its dict)`, as a faulty program would: with checksums that hold."""
        content = torch.load(self.checkpoint, weights_only=True)
        changed = change(content)
        torch.save(content if changed is None else changed, self.checkpoint)


def write_task(folder):
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for number in range(2):
            values = (np.indices((32, 32, 3))[0] > 9 + number).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / part / f"hip_{number}.nii.gz")
    listed = [{"image": f"./imagesTr/hip_{n}.nii.gz", "label": f"./labelsTr/hip_{n}.nii.gz"} for n in range(2)]
    labels = {"0": "background", "1": "hip"}
    content = {"name": "hip", "modality": {"0": "MRI"}, "labels": labels, "numTraining": 2, "training": listed}
    (folder / "dataset.json").write_text(json.dumps(content | {"test": [], "tensorImageSize": "3D"}))


def write_scans(folder):
    values = np.random.default_rng(0).integers(0, 99, (32, 32, 3)).astype(np.int16)
    write_volume_as(folder / "images" / "a.nrrd", values, compressed=True)
    write_volume_as(folder / "images" / "b.mha", values)
    write_series(folder / "images" / "c", values)
    for name in "abc":
        write_volume_as(folder / "masks" / f"{name}.nrrd", (values > 50).astype(np.uint8))


# ---- the doors -----------------------------------------------------------------------------------------------------


def train(at):
    return "segmentation_train", ["--data_name FOLDER --data_dir", at.data, "--out_dir", at.out, TINY, "--max_steps 2"]


def resume(at):
    name, line = train(at)
    return name, [*line, "--max_steps 3 --resume_checkpoint", at.checkpoint]


def train_task(at):
    return "segmentation_train", ["--data_name MSD --data_dir", at.task, "--out_dir", at.out, TINY, "--max_steps 2"]


def sample(at):
    return "segmentation_sample", ["--model_path", at.checkpoint, "--data_dir", at.data, "--out_dir", at.out, FAST]


def rerun(at):
    return "segmentation_sample", ["--model_path", at._trained, "--data_dir", at.data, "--out_dir", at.results, FAST]


def evaluate(at):
    return "segmentation_eval", ["--pred_dir", at.results, "--data_dir", at.data, "--out_dir", at.out]


def compare(at):
    return "segmentation_eval", ["--pred_dir", at._results, "--compare", at.results, "--out_dir", at.out]


def check(at):
    return "check_data", ["--data_name FOLDER --data_dir", at.data, "--out_dir", at.root / "checked"]


def check_task(at):
    return "check_data", ["--data_name MSD --data_dir", at.task, "--out_dir", at.root / "checked"]


def check_scans(at):
    return "check_data", ["--data_name FOLDER --data_dir", at.scans, "--out_dir", at.root / "checked"]


def train_scans(at):
    return "segmentation_train", ["--data_name FOLDER --data_dir", at.scans, "--out_dir", at.out, TINY, "--max_steps 2"]


def config(at):
    return "segmentation_train", ["--config", at.root / "run.yaml", "--data_dir", at.data, "--out_dir", at.out]


def demo(at):
    return "demo", ["--out_dir", at.out]


def load(at):
    """The door of notebooks."""
    return None, lambda: Segmenter.load(at.checkpoint, members=1, steps=1, device="cpu")


# ---- what is spoilt ------------------------------------------------------------------------------------------------


def written(name, content):
    """A `spoil` that writes a file below the place; a function gives the content that depends on the place."""

    def spoil(at):
        at.make()
        path = at.root / name
        value = content(at) if callable(content) else content
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        path.write_bytes(value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))

    return spoil


def jsoned(name, content):
    return written(name, json.dumps(content))


def task_with(**changes):
    """A `spoil` of the Decathlon's dataset.json; None removes a key."""

    def spoil(at):
        path = at.task / "dataset.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return spoil


def manifest_with(change):
    """A `spoil` of the results' manifest: change(dict) changes it, or returns what is written instead."""

    def spoil(at):
        path = at.results / "manifest.json"
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))

    return spoil


def checkpoint_with(change):
    return lambda at: at.change_checkpoint(change)


def flipped(fraction):
    """A `spoil` that flips one bit of the checkpoint."""

    def spoil(at):
        data = bytearray(at.checkpoint.read_bytes())
        data[int(len(data) * fraction)] ^= 16
        at.checkpoint.write_bytes(data)

    return spoil


def nested(*keys):
    """A function that changes a dict at these keys: nested("config", "model")(version="v9")."""

    def changes(**values):
        def change(content):
            for key in keys:
                content = content[key]
            content.update(values)

        return change

    return changes


def without(*keys):
    def change(content):
        *path, last = keys
        for key in path:
            content = content[key]
        del content[last]

    return change


def link(name, target):
    def spoil(at):
        at.make()
        path = at.root / name
        if path.exists() or path.is_symlink():
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, path)

    return spoil


def saved(name, make):
    def spoil(at):
        at.make()
        make(at.root / name)

    return spoil


def png(shape):
    return lambda path: Image.fromarray(np.zeros(shape, np.uint8)).save(path)


def claiming(data, width, height):
    """A PNG file whose header claims another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def nifti(shape):
    return lambda path: nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), path)


def replaced(name, before, after):
    """A `spoil` that replaces bytes in a file once."""

    def spoil(at):
        path = at.make() and at.root / name
        content = path.read_bytes()
        assert before in content
        path.write_bytes(content.replace(before, after, 1))

    return spoil


def halved(name):
    def spoil(at):
        path = at.make() and at.root / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    return spoil


def folder_at(name):
    def spoil(at):
        at.make()
        path = at.root / name
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)

    return spoil


LONG = "9" * 5000
DEEP = "[" * 5000
ODD_TEXTS = {  # for each door that reads a JSON file
    "empty": "",
    "cut": '{"train": ["ca',
    "deep": DEEP,
    "deep and closed": DEEP + "]" * 5000,
    "digits": f'{{"train": {LONG}}}',
    "number": "7",
    "null": "null",
    "text": '"train"',
    "list": "[1, 2]",
    "UTF-16": '{"train": []}'.encode("utf-16"),
    "bytes": b"\xff\xfe\x00\x01" * 9,
    "NaN": '{"train": NaN}',
}

ROWS = []


def row(door, name, spoil, *line):
    """Add a row. spoil: a function of the place, or flags. line: words that the line must have."""
    ROWS.append(pytest.param(door, spoil, line, id=f"{door.__name__}: {name}"))


# Flags.
for flags, *line in (
    ("--channel_mult nan",),
    ("--channel_mult 1,,2",),
    ("--channel_mult 1,-2",),
    ("--channel_mult 0,1",),
    ("--channel_mult 1,2,inf",),
    ("--attention_resolutions -3",),
    ("--attention_resolutions 16,x",),
    ("--ema_rate 0.9,0.9",),
    ("--ema_rate 1.5",),
    ("--ema_rate nan",),
    ("--ema_rate ''",),
    (f"--seed {2**70}",),
    ("--seed -1",),
    ("--seed 1.5",),
    (f"--seed {LONG}", "--seed"),
    ("--diffusion_steps 2000000000",),
    ("--diffusion_steps 0",),
    ("--image_size 0",),
    ("--image_size 1000000",),
    ("--image_size ３２",),
    ("--image_size 3_2",),
    ("--batch_size 0",),
    ("--batch_size 99999999999",),
    ("--num_workers -1",),
    ("--num_workers 1000000",),
    ("--lr nan",),
    ("--lr -1",),
    ("--lr 1e400",),
    ("--num_heads 0",),
    ("--num_res_blocks 99999",),
    ("--dropout nan",),
    ("--dropout 1.5",),
    ("--max_steps -1",),
    ("--max_minutes nan",),
    ("--save_interval -5",),
    ("--keep_checkpoints -1",),
    ("--val_fraction 2",),
    ("--val_fraction nan",),
    ("--classes =,",),
    ("--ignore_label void", "must be whole numbers"),
    ("--ignore_label -1", "--ignore_label"),
    ("--ignore_label 1 --classes a=1", "1 is also a value of the class a"),
    ("--track tensorflow", "wandb, mlflow, trackio"),
    ("--precision fp8",),
    ("--version v9",),
    ("--recipe nothing",),
    ("--preset XXL",),
    ("--augment wild",),
    ("--class_cond maybe",),
    ("--no_such_flag 3",),
    ("--out_dir ''", "--out_dir"),
    ("--data_dir ''", "--data_dir"),
    ("--data_dir none", "none: no such folder"),
    ("--data_name MNIST",),
    ("--val_dir none --sample_interval 1", "none"),
    ("--resume_checkpoint none.pt", "none.pt"),
    (f"--out_dir {'a' * 300}", "--out_dir"),
):
    row(train, flags[:40], flags, *(line or (flags.split()[0],)))
for flags, *line in (
    ("--num_ensemble -1",),
    ("--num_ensemble 2.5",),
    ("--num_ensemble 1000000000",),
    ("--diffusion_steps 2000000000",),
    ("--temperature nan",),
    ("--temperature -1",),
    ("--tile_overlap 2",),
    ("--scales 0",),
    ("--scales 1,nan",),
    ("--weights 0.5",),
    ("--sampler euler",),
    ("--fuse best",),
    ("--split ''",),
    (f"--seed {2**70}",),
    ("--sample_batch_size -2",),
    ("--out_dir ''", "--out_dir"),
    ("--model_path ''", "--model_path"),
    ("--model_path /dev/zero", "/dev/zero"),
    ("--data_dir /dev/null", "/dev/null"),
):
    row(sample, flags[:40], flags, *(line or (flags.split()[0],)))
for flags, *line in (
    ("--nsd_tolerance nan",),
    ("--nsd_tolerance 1,,2",),
    ("--lesion_iou 2",),
    ("--compare none", "none"),
    ("--pred_dir ''", "--pred_dir"),
    ("--pred_dir none", "none"),
    ("--fit_temperature none.pt", "none.pt"),
    ("--out_dir ''", "--out_dir"),
):
    row(evaluate, flags[:40], flags, *(line or (flags.split()[0],)))
row(check, "--num_shown -1", "--num_shown -1", "--num_shown")
row(check, "--max_megapixels nan", "--max_megapixels nan", "--max_megapixels")
row(demo, "--speed nan", "--speed nan", "--speed")
row(demo, "--seed", f"--seed {2**70}", "--seed")

# Texts.
for name, text in ODD_TEXTS.items():
    row(train, f"split.json {name}", written("data/split.json", text), "split.json")
    row(train_task, f"dataset.json {name}", written("task/dataset.json", text), "dataset.json")
    row(evaluate, f"manifest {name}", written("results/manifest.json", text), "manifest.json")
    row(rerun, f"manifest {name}", written("results/manifest.json", text), "manifest.json")
for name, spoil in {
    "is a folder": folder_at("data/split.json"),
    "of numbers": jsoned("data/split.json", {"train": [1, 2]}),
    "with a dict": jsoned("data/split.json", {"train": {"case0": 1}}),
    "with ..": jsoned("data/split.json", {"train": ["../secret"]}),
    "absolute": jsoned("data/split.json", {"train": ["/etc/passwd"]}),
    "without such a case": jsoned("data/split.json", {"train": ["case77"]}),
    "a case in two lists": jsoned("data/split.json", {"train": ["case0"], "val": ["case0"]}),
    "/dev/zero": link("data/split.json", "/dev/zero"),
}.items():
    row(train, f"split.json {name}", spoil, "split.json")
for name, spoil in {
    "labels a list": task_with(labels=["hip"]),
    "labels a number": task_with(labels=1),
    "labels of odd values": task_with(labels={"hip": {"a": 1}}),
    "training a text": task_with(training="imagesTr"),
    "training of numbers": task_with(training=[1, 2]),
    "training without images": task_with(training=[{"label": "labelsTr/hip_0.nii.gz"}]),
    "training a dict": task_with(training={"image": 1}),
    "training with ..": task_with(training=[{"image": "../secret.nii.gz", "label": "./labelsTr/hip_0.nii.gz"}]),
    "training absolute": task_with(training=[{"image": "/etc/passwd", "label": "./labelsTr/hip_0.nii.gz"}]),
    "modality a number": task_with(modality=3),
    "without modality": task_with(modality=None),
    "is a folder": folder_at("task/dataset.json"),
}.items():
    row(train_task, f"dataset.json {name}", spoil, "dataset.json")
for name, change in {
    "settings a list": lambda m: m.update(settings=[]),
    "data a text": lambda m: m.update(data="FOLDER"),
    "data null": lambda m: m.update(data=None),
    "split a number": lambda m: m["data"].update(split=3),
    "data_dir a number": lambda m: m["data"].update(data_dir=3),
    "data_name a list": lambda m: m["data"].update(data_name=["FOLDER"]),
    "classes a number": lambda m: m["data"].update(classes=7),
    "hold-out a text": lambda m: m["data"].update(val_fraction="much"),
    "hold-out of 7": lambda m: m["data"].update(test_fraction=7),
    "members a text": lambda m: m["settings"].update(num_ensemble="many"),
    "members negative": lambda m: m["settings"].update(num_ensemble=-3),
    "members a float": lambda m: m["settings"].update(num_ensemble=2.5),
    "megapixels a text": lambda m: m["data"].update(max_megapixels="all"),
    "sum a number": lambda m: m.update(checkpoint_sha256=5),
}.items():
    row(evaluate, f"manifest {name}", manifest_with(change), "manifest.json")
for name, text in {
    "empty": "",
    "list": "- a\n- b\n",
    "number": "7",
    "tag": "lr: !!python/object/apply:os.system ['true']\n",
    "deep": "lr: " + "[" * 200,
    "digits": f"lr: {LONG}\n",
    "digits for an integer": f"seed: {LONG}\n",
    "date": "lr: 2020-13-01\n",
    "valid date": "seed: 2020-10-01\n",
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{n}: &{n} [{','.join([f'*{o}'] * 9)}]\n" for o, n in zip("abcdefgh", "bcdefghi", strict=True)),
    "include itself": "include: run.yaml\n",
    "include none": "include: none.yaml\n",
    "include a folder": "include: data\n",
    "include /dev/zero": "include: /dev/zero\n",
    "include a number": "include: 3\n",
    "a list for a number": "lr: [1, 2]\n",
    "a dict for a text": "data_name: {a: 1}\n",
    "null for a number": "lr: null\n",
    "nan": "lr: .nan\n",
    "infinite": "lr: .inf\n",
    "unknown": "no_such_flag: 3\n",
    "two documents": "lr: 1\n---\nlr: 2\n",
    "twice": "lr: 1\nlr: 2\n",
    "not UTF-8": b"lr: \xff\n",
    "NUL": b"lr: 1\x00\n",
    "a tab": "lr:\t- 3\n\tseed: 1\n",
    "a key that is no text": "3: 4\n",
    "a key of a list": "? [1, 2]\n: 4\n",
}.items():
    row(config, f"YAML {name}", written("run.yaml", text), "run.yaml")
row(config, "YAML is a folder", folder_at("run.yaml"), "run.yaml")
row(config, "YAML is /dev/zero", link("run.yaml", "/dev/zero"), "run.yaml")
row(config, "YAML is a link in a circle", link("run.yaml", "run.yaml"), "run.yaml")
row(train, "labels.csv of one column", lambda at: (written("data/labels.csv", "case0\n")(at), "--class_cond True")[1],
    "labels.csv")  # fmt: skip

# Pictures and volumes.
for name, spoil in {
    "empty": written("data/images/case1.png", ""),
    "a text": written("data/images/case1.png", "hello"),
    "a page": written("data/images/case1.png", "<!DOCTYPE html><html>"),
    "cut": lambda at: at.image.write_bytes(at.image.read_bytes()[:90]),
    "a header alone": lambda at: at.image.write_bytes(at.image.read_bytes()[:33]),
    "that claims 60000 x 60000": lambda at: at.image.write_bytes(claiming(at.image.read_bytes(), 60000, 60000)),
    "that claims 0 x 40": lambda at: at.image.write_bytes(claiming(at.image.read_bytes(), 0, 40)),
    "a folder": folder_at("data/images/case1.png"),
    "a broken link": link("data/images/case1.png", "nowhere.png"),
    "a link in a circle": link("data/images/case1.png", "case1.png"),
    "of another size": saved("data/images/case1.png", png((5, 7, 3))),
}.items():
    row(check, f"picture {name}", spoil, "case1.png")
for name, spoil in {
    "empty": written("task/imagesTr/hip_1.nii.gz", b""),
    "a text": written("task/imagesTr/hip_1.nii.gz", "hello"),
    "cut": lambda at: at.volume.write_bytes(at.volume.read_bytes()[:200]),
    "of an axis of 0": saved("task/imagesTr/hip_1.nii.gz", nifti((32, 0, 3))),
    "of no slices": saved("task/imagesTr/hip_1.nii.gz", nifti((32, 32, 0))),
    "of another size": saved("task/imagesTr/hip_1.nii.gz", nifti((16, 32, 3))),
    "of 5 axes": saved("task/imagesTr/hip_1.nii.gz", nifti((32, 32, 3, 2, 2))),
    "a broken link": link("task/imagesTr/hip_1.nii.gz", "nowhere.nii.gz"),
}.items():
    row(check_task, f"volume {name}", spoil, "hip_1")

# Volumes of other formats: cut short, with headers that claim too much or lead elsewhere, and in series that are none.
SIZE = b"32 32 3"
for name, spoil, *line in (
    ("NRRD cut short", halved("scans/images/a.nrrd"), "a.nrrd", "truncated or damaged"),
    ("NRRD mask cut short", halved("scans/masks/b.nrrd"), "b.nrrd", "truncated or damaged"),
    ("NRRD of a page", written("scans/images/a.nrrd", "<html>"), "a.nrrd", "is an HTML page"),
    ("NRRD bomb", replaced("scans/images/a.nrrd", SIZE, b"99999 99999 99"), "a.nrrd", "claims"),
    ("NRRD of other sizes", replaced("scans/images/a.nrrd", SIZE, b"32 32 4"), "a.nrrd", "claims"),
    (
        "NRRD elsewhere",
        replaced("scans/images/a.nrrd", b"encoding: gzip", b"encoding: raw\ndata file: ../../../secret"),
        *("a.nrrd", "not below its own folder"),
    ),
    ("MHA cut short", halved("scans/images/b.mha"), "b.mha", "truncated or damaged"),
    ("MHA bomb", replaced("scans/images/b.mha", SIZE, b"99999 99999 99"), "b.mha", "claims"),
    ("MHA elsewhere", replaced("scans/images/b.mha", b"= LOCAL", b"= /etc/passwd"), "b.mha", "not below its own"),
    ("DICOM cut short", halved("scans/images/c/IM0001.dcm"), "IM0001.dcm", "truncated or damaged"),
    (
        "DICOM of two series",
        lambda at: write_slice(at.scans / "images/c/z.dcm", np.zeros((32, 32), np.int16), (0, 0, 0), series="7"),
        *("images/c", "holds 2 DICOM series"),
    ),
):
    row(check_scans, name, spoil, *line)
row(
    train_scans,
    "NRRD of other voxels",
    saved("scans/masks/a.nrrd", lambda path: write_volume_as(path, np.zeros((16, 32, 3), np.uint8))),
    "16x32x3 voxels",
)

# Checkpoints.
CHECKPOINTS = {
    "a folder": folder_at("run/model000002.pt"),
    "empty": written("run/model000002.pt", b""),
    "a text": written("run/model000002.pt", "weights"),
    "cut": lambda at: at.checkpoint.write_bytes(at.checkpoint.read_bytes()[:5000]),
    "a flipped bit": flipped(0.4),
    "another flipped bit": flipped(0.77),
    "a tensor": checkpoint_with(lambda c: torch.zeros(3)),
    "a list": checkpoint_with(lambda c: [1]),
    "without weights": checkpoint_with(without("model")),
    "weights a list": checkpoint_with(lambda c: c.update(model=[1])),
    "a weight missing": checkpoint_with(lambda c: c["model"].pop(next(iter(c["model"])))),
    "a weight too many": checkpoint_with(lambda c: c["model"].update(more=torch.zeros(1))),
    "a weight of another shape": checkpoint_with(lambda c: c["model"].update({next(iter(c["model"])): torch.zeros(1)})),
    "a weight that is a text": checkpoint_with(lambda c: c["model"].update({next(iter(c["model"])): "x"})),
    "an average missing": checkpoint_with(lambda c: c.update(ema={})),
    "an average a list": checkpoint_with(lambda c: c.update(ema=[])),
    "without options": checkpoint_with(without("config")),
    "options a list": checkpoint_with(lambda c: c.update(config=[])),
    "without a group": checkpoint_with(without("config", "model")),
    "a group null": checkpoint_with(lambda c: c["config"].update(diffusion=None)),
    "an unknown option": checkpoint_with(nested("config", "model")(from_the_future=3)),
    "version v9": checkpoint_with(nested("config", "model")(version="v9")),
    "a width of a text": checkpoint_with(nested("config", "model")(num_channels="wide")),
    "a width of nan": checkpoint_with(nested("config", "model")(num_channels=float("nan"))),
    "a size of 0": checkpoint_with(nested("config", "model")(image_size=0)),
    "a huge width": checkpoint_with(nested("config", "model")(num_channels=10**9)),
    "multipliers nan": checkpoint_with(nested("config", "model")(channel_mult="nan")),
    "steps of 2e9": checkpoint_with(nested("config", "diffusion")(diffusion_steps=2 * 10**9)),
    "steps of a list": checkpoint_with(nested("config", "diffusion")(diffusion_steps=[1])),
    "channels of a text": checkpoint_with(lambda c: c.update(image_channels="three")),
    "channels of 0": checkpoint_with(lambda c: c.update(image_channels=0)),
    "class names of numbers": checkpoint_with(lambda c: c.update(class_names=[1])),
    "no class names": checkpoint_with(lambda c: c.update(class_names=[])),
    "step a text": checkpoint_with(lambda c: c.update(step="two")),
    "step negative": checkpoint_with(lambda c: c.update(step=-1)),
    "format of another": checkpoint_with(lambda c: c.update(format="medsegdiff-checkpoint-99")),
}  # fmt: skip
for number, (name, spoil) in enumerate(CHECKPOINTS.items()):
    for door in (sample, (resume, load)[number % 2]):
        row(door, f"checkpoint {name}", spoil, "model000002.pt")


# ---- the test ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(script, trained, pictures, tmp_path_factory):
    """A results folder of the checkpoint `trained`, on the same pictures as a place's first three."""
    out = tmp_path_factory.mktemp("bad") / "results"
    script("segmentation_sample", ["--model_path", trained, "--data_dir", pictures, "--out_dir", out, FAST])
    return out


@pytest.fixture
def place(tmp_path, trained, results, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path / "place", trained, results)


def contents(folder):
    """{path: size and time} of the files below a folder, links as themselves."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}


@pytest.mark.parametrize("door, spoil, line", ROWS)
def test_bad_input(door, spoil, line, place, script, capsys):
    place.root.mkdir()
    flags = spoil if isinstance(spoil, str) else spoil(place)
    name, arguments = door(place)
    before = contents(place.root)
    capsys.readouterr()
    if name is None:
        with pytest.raises(UserError) as refused:
            arguments()
        text, status = f"error: {refused.value}", 2
    else:
        with pytest.raises(SystemExit) as stopped:
            run_script(lambda: script(name, [*arguments, flags if isinstance(flags, str) else ""]))
        printed, status = capsys.readouterr(), stopped.value.code
        lines = messages(printed.err)
        if name == "check_data" and status == 1:  # it goes on, and its findings are its output
            assert all(text.startswith(("looking: ", "drawing: ", "error: ")) for text in lines), lines
            found = [text for text in (*lines, *printed.out.splitlines()) if text.startswith("error: ")]
            lines = [text for text in found if line[0] in text][:1]
        assert len(lines) == 1, (lines, printed.out[-500:])
        (text,) = lines
    assert status in (1, 2) and text.startswith("error: ") and len(text) < 1200
    assert all(word in text for word in line), text
    checked = place.root / "checked"
    assert {path: state for path, state in contents(place.root).items() if not path.is_relative_to(checked)} == before
    assert not place.out.exists() and files(Path.cwd()) == files(place.root.parent)
