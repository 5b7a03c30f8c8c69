"""nnU-Net v2 as a contender: it lives in an environment of its own, reads our data as its raw folder, and our
evaluation scores its masks. This project neither installs nor needs it."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
from accuracy_runs import SECONDS, append, call_program, call_script, is_recorded, machine, outcome
from accuracy_table import FOREIGN

from guided_diffusion.data.cases import group_cases
from guided_diffusion.data.truth import majority, raters_of
from guided_diffusion.io.files import write_json
from guided_diffusion.io.images import read_picture, write_png
from guided_diffusion.io.texts import read_json
from guided_diffusion.runtime.console import console
from guided_diffusion.runtime.errors import UserError

WORKER = Path(__file__).resolve().with_name("nnunet_worker.py")
RAW = "Dataset001_ours"
MIRROR = "--mirror"  # the flag of sampling: test-time augmentation by mirroring
VERSION_OF = "import importlib.metadata as m, nnunetv2, torch; print(m.version('nnunetv2'))"


@cache
def nnunet_version(python):
    """The version of nnU-Net that a python has. Raises `UserError` without one."""
    if not python:
        raise UserError(
            "--nnunet_python: is needed for nnunet; name the python of an environment of its own, made by python -m "
            "venv ENV && ENV/bin/pip install nnunetv2"
        )
    try:
        done = subprocess.run([python, "-c", VERSION_OF], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"--nnunet_python {python}: cannot be run ({error.strerror})") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"--nnunet_python {python}: has no nnunetv2 that can be imported ({reason})")
    return done.stdout.strip()


# ---- our data as nnU-Net's raw folder ------------------------------------------------------------------------------


def write_raw(data, split, folder):
    """Write the training cases with masks and the test cases without, as nnU-Net's raw folder `folder`.

    Pictures become PNG files and volumes NIfTI files; several raters' masks become their majority. A file has its
    case's number for a name; returns {number: name} of the test cases. data: a `DataSet`, split: see `DataSet.build`.
    """
    names, count = {}, 0
    for part, images in (("train", "imagesTr"), ("test", "imagesTs")):
        dataset = data.build(part, split=split, need_masks=part == "train")
        units = group_cases(dataset.cases)
        for number, unit in enumerate(units):
            stem = f"{images}/case{number:05d}"
            write = _write_volume if unit.is_volume else _write_picture
            image = _image_of(dataset, unit)
            truth = majority(raters_of(dataset, unit.cases)) if part == "train" else None
            write(folder, stem, image, truth, dataset.load_geometry(unit.cases[0]))
            if part == "test":
                names[f"case{number:05d}"] = unit.name
        if part == "train":
            count, ending = len(units), ".nii.gz" if units[0].is_volume else ".png"
            channels = {str(c): f"channel {c}" for c in range(dataset.image_channels)}
    labels = {"background": 0, "foreground": 1}
    about = {"channel_names": channels, "labels": labels, "numTraining": count, "file_ending": ending}
    write_json(folder / "dataset.json", about)
    return names


def _image_of(dataset, unit):
    """The image of a `Unit` as it was read: float32 [C, H, W], or [C, X, Y, Z] of a volume."""
    slices = [dataset.load_image(case) for case in unit.cases]
    return np.stack(slices, axis=-1) if unit.is_volume else slices[0]


def _write_picture(folder, stem, image, truth, _):
    """A picture: RGB in one file, other channels in a file each. nnU-Net's z-scores do not depend on the bits."""
    if image.min() < 0 or image.max() > 255:
        raise UserError(f"{stem}: nnunet takes pictures with values from 0 to 255, not {image.min()} to {image.max()}")
    whole = np.array_equal(image, image.round())
    for number, channel in enumerate([image.transpose(1, 2, 0)] if len(image) == 3 and whole else image):
        values = channel.astype(np.uint8) if whole else (257 * channel).round().astype(np.uint16)
        _write(write_png, folder / f"{stem}_{number:04d}.png", values)
    if truth is not None:
        _write(write_png, folder / f"{stem.replace('images', 'labels')}.png", truth.astype(np.uint8))


def _write_volume(folder, stem, image, truth, geometry):
    """A volume, in the coordinates of its geometry."""
    for number, channel in enumerate(image):
        _write(_save_nifti(geometry), folder / f"{stem}_{number:04d}.nii.gz", channel)
    if truth is not None:
        _write(_save_nifti(geometry), folder / f"{stem.replace('images', 'labels')}.nii.gz", truth.astype(np.uint8))


def _save_nifti(geometry):
    return lambda path, array: nibabel.save(nibabel.Nifti1Image(array, geometry.affine), path)


def _write(write, path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, array)


def read_back(predicted, names, results):
    """Write nnU-Net's masks, which have the cases' numbers for names, to `results` by the cases' names.

    Raises `UserError` for a case without a mask.
    """
    for number, name in names.items():
        found = [path for path in (predicted / f"{number}.png", predicted / f"{number}.nii.gz") if path.is_file()]
        if not found:
            raise UserError(f"{predicted}: has no mask of {name} ({number}); see nnU-Net's messages above")
        if found[0].suffix == ".png":
            _write(write_png, results / f"{name}.png", (255 * (read_picture(found[0])[0] > 0)).astype(np.uint8))
        else:
            results.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found[0], results / f"{name}.nii.gz")


# ---- one run -------------------------------------------------------------------------------------------------------


def run_nnunet(options, data, contender, how, seed):
    """Train, predict and evaluate nnU-Net, unless its line is there; append the line.

    how: its `Contender`. The processor time of training is --minutes, for each of the threads.
    """
    version = nnunet_version(options.nnunet_python)
    what = {"kind": "user", "split": options.split, "set": data.name, "contender": contender, "seed": seed}
    memory = f"{options.nnunet_memory:g} GB" if options.nnunet_memory else ""
    what |= {"minutes": options.minutes, "version": f"{FOREIGN} {version}", "flags": memory, "sampling": how.sampling}
    if is_recorded(options, what):
        return
    console().info(f"\n=== {data.name}, {contender}, seed {seed}")
    division = {"test_fraction": data.test_fraction} if data.test_fraction else {}
    base = Path(options.out_dir) / f"{options.split}_{data.name}_nnunet_{options.nnunet_memory:g}"
    base = base.with_name(f"{base.name}_{data.test_fraction:g}") if division else base
    folder = base / f"{seed}_{options.minutes:g}"
    places = {
        "nnUNet_raw": base / "raw",
        "nnUNet_preprocessed": base / "preprocessed",
        "nnUNet_results": folder / "run",
    }
    own = {name: str(place) for name, place in places.items()}
    prepared = _prepare(options, data, base, own)
    own["nnUNet_n_proc_DA"] = "0"  # augmentation is in the training's process, whose time is limited
    trained = folder / SECONDS
    if not trained.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        seconds, processor = _call(options, own, "train", options.minutes, seed)
        (steps,) = folder.glob("run/*/*/steps.json")
        write_json(trained, {"train_seconds": seconds, "train_cpu_seconds": processor} | read_json(steps))
    if options.only_train:
        return
    predicted, results = folder / f"predicted_{contender}", folder / f"results_{contender}"
    shutil.rmtree(results, ignore_errors=True)
    mirrors = MIRROR in how.sampling
    tta = "mirror" if mirrors else "none"
    seconds, processor = _call(options, own, "predict", base / "raw" / RAW / "imagesTs", predicted, tta)
    names = read_json(base / "names.json")
    read_back(predicted, names, results)
    manifest = {"data": {"data_dir": data.data_dir, "split": "test"} | division}
    write_json(results / "manifest.json", manifest | {"seconds": seconds, "cases_sampled": len(names)})
    name = data.as_user(options.split)[2:] or ["--data_name", "AUTO"]
    call_script(options, "segmentation_eval.py", ["--pred_dir", str(results), *name])
    line = what | {"machine": machine()} | prepared | read_json(trained) | {"sample_cpu_seconds": processor}
    line |= division
    line["views"] = "tiles" + (", mean over 4 mirrored images" if mirrors else "")
    append(options.record, line | outcome(results, data.build("test", split=options.split)))


def _prepare(options, data, base, own):
    """Write the raw folder and preprocess it, unless that is done. Returns the seconds that nnU-Net took for it."""
    done = base / SECONDS
    if not done.is_file():
        shutil.rmtree(base, ignore_errors=True)
        write_json_in(base / "names.json", write_raw(data, options.split, base / "raw" / RAW))
        # The planner takes as many threads as there may be processes for augmentation.
        seconds, processor = _call(options, own | {"nnUNet_n_proc_DA": "1"}, "prepare", options.nnunet_memory)
        write_json(done, {"prepare_seconds": seconds, "prepare_cpu_seconds": processor})
    return read_json(done)


def write_json_in(path, value):
    """`write_json`, in a folder that may not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)


def _call(options, own, *words):
    for place in (value for name, value in own.items() if name != "nnUNet_n_proc_DA"):
        Path(place).mkdir(parents=True, exist_ok=True)
    command = [options.nnunet_python, str(WORKER), *map(str, words)]
    return call_program(options, f"nnU-Net's {words[0]}", command, **own)
