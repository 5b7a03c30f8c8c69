"""What several test files do alike: read options, compare runs, wait for files, and call commands."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest
import torch
from conftest import SCRIPTS

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.options import DataOptions, DiffusionOptions, ModelOptions, ProcessOptions
from guided_diffusion.config.sample_options import CheckOptions, EvalOptions, SampleOptions
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.data.batches import collate
from guided_diffusion.data.cases import Geometry
from guided_diffusion.evaluation.evaluate import Evaluation, EvaluationSettings
from guided_diffusion.inference.answer import CaseMaps
from guided_diffusion.runtime.errors import UserError

TRAIN = [DataOptions, TrainOptions, ModelOptions, DiffusionOptions, ProcessOptions]
SAMPLE = [SampleOptions, DataOptions, ModelOptions, DiffusionOptions, ProcessOptions]
GROUPS = {
    "segmentation_train": TRAIN,
    "segmentation_sample": SAMPLE,
    "segmentation_eval": [EvalOptions],
    "check_data": [CheckOptions, DataOptions],
    "demo": [],
}


def train_options(line):
    return parse("", TRAIN, line.split())


def values(line, groups=TRAIN):
    """All options of a command line in one dict."""
    options, _ = parse("", groups, line.split())
    return {name: value for group in reversed(options) for name, value in dataclasses.asdict(group).items()}


def refused(line, groups=TRAIN):
    with pytest.raises(UserError) as error:
        parse("", groups, line.split())
    assert "\n" not in str(error.value)
    return str(error.value)


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def logged(folder):
    """The rows of log.jsonl, but for what is no two times the same."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "waiting"} for row in rows]


def furthest(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def checkpoints(folder):
    return list(folder.glob("model*.pt"))


def temporaries(folder):
    """Checkpoints that are half written."""
    return list(folder.glob(".model*.pt"))


def wait_for_more(look, child, seconds=60):
    before, until = set(look()), time.monotonic() + seconds
    while not set(look()) - before:
        assert time.monotonic() < until and child.is_alive()
        time.sleep(0.001)


def help_of(name, script, capsys, flag="--help_all"):
    """The help of a script, each flag's in one line."""
    with pytest.raises(SystemExit) as stopped:
        script(name, flag)
    assert stopped.value.code == 0
    return re.sub(r"\n {10,}", " ", capsys.readouterr().out)


def torchrun(arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}
    return subprocess.run(
        [*command, str(SCRIPTS / "segmentation_sample.py"), *arguments], env=environment, capture_output=True, text=True
    )


TASK_AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])


def write_task(folder, description, images, labels, tests=()):
    """A task as it comes out of its archive. images, labels, tests: {name: array}."""
    for part, arrays in (("imagesTr", images), ("labelsTr", labels), ("imagesTs", dict(tests))):
        for name, array in arrays.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, TASK_AFFINE), folder / part / f"{name}.nii.gz")
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in images]
    listed = {"numTraining": len(images), "training": training, "test": [f"./imagesTs/{n}.nii.gz" for n in dict(tests)]}
    (folder / "dataset.json").write_text(json.dumps({**description, **listed}))
    (folder / "imagesTr" / "._hidden.nii.gz").touch()  # as the archives have them
    return folder


def batch_of(dataset, indices):
    return collate([dataset[i] for i in indices])


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def log_rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


PUBLISHED = (
    "--data_dir DATA/training --out_dir OUT --image_size 256 --num_channels 128 --class_cond False "
    "--num_res_blocks 2 --num_heads 1 --learn_sigma True --use_scale_shift_norm False --attention_resolutions 16 "
    "--diffusion_steps 1000 --noise_schedule linear --rescale_learned_sigmas False --rescale_timesteps False"
)
MANIFEST = {
    "checkpoint": "m.pt",
    "step": 5,
    "checkpoint_sha256": "aa",
    "settings": {"num_ensemble": 2, "sampler": "ddpm", "timesteps": list(range(100))},
    "data": {"data_dir": "/data"},
}


def maps_of(size, members=2, coarse=True, seed=0, classes=1):
    """Random answers of a size."""
    rng, shape = np.random.default_rng(seed), (classes, *size)
    return CaseMaps(
        mask=rng.random(shape) > 0.5,
        probability=rng.random(shape).astype(np.float32),
        uncertainty=rng.random(shape).astype(np.float32) / 2,
        members=rng.random((members, *shape)) > 0.5,
        coarse=rng.random(shape).astype(np.float32) if coarse else None,
    )


def geometry_of(affine):
    """The geometry of a volume that lies as its file does; its spacing and shape are not asked for."""
    return Geometry(affine, (), ())


def write_volume(folder, name, maps, geometry, image_of, truth=None):
    """Write the `CaseMaps` of a whole volume [K, X, Y, Z] to a `ResultsFolder`."""
    files = folder.begin_volume(name, geometry, maps.mask.shape[-1])
    for k in range(maps.mask.shape[-1]):
        files.add(maps.map_arrays(lambda values, k=k: values[..., k]))
    folder.finish_volume(files, image_of, truth)


def manifest_with(**changes):
    new = json.loads(json.dumps(MANIFEST))
    for key, value in changes.items():
        if key in new["settings"]:
            new["settings"][key] = value
        elif key in new["data"]:
            new["data"][key] = value
        else:
            new[key] = value
    return new


def evaluation_of(classes=("organ",), **cases):
    """An `Evaluation` of rows by hand. cases: {name: {figure: its value, or with several classes a tuple}}."""
    made = Evaluation(classes, EvaluationSettings(), "pixels", "pixels")
    for name, figures in cases.items():
        for k, kind in enumerate(classes):
            values = {key: value[k] if isinstance(value, tuple) else value for key, value in figures.items()}
            row = {"name": name, "class": kind, "group": "", "empty": "", "rater_pixels": 1.0, **values}
            made.add(row, {}, np.zeros((0, 3)))
    return made
