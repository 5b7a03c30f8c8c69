"""The memory of a large volume, from its file to its results, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (256, 256, 160)
CODE = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from guided_diffusion.data.volumes import VolumeReader
from guided_diffusion.inference.answer import fuse_cases
from guided_diffusion.inference.members import Members
from guided_diffusion.inference.results import ResultsFolder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

path, out = map(Path, sys.argv[1:])
torch.set_num_threads(1)
reader = VolumeReader()
cases = reader.cases("v", [path])
geometry = reader.geometry(cases[0])
folder = ResultsFolder(out, {"settings": {}, "data": {}, "checkpoint_sha256": "0"}, save_samples=True)
begin = peak()
reader.image(cases[0])
decoded = peak()
files = folder.begin_volume("v", geometry, len(cases))
members = Members(torch.linspace(0, 1, 64 * 64).reshape(1, 1, 1, 64, 64).expand(2, len(cases), 1, 64, 64), None)
for maps in fuse_cases(members, [geometry.shape[:2]] * len(cases), "staple"):
    files.add(maps)
folder.finish_volume(files, lambda k: reader.image(cases[k]))
print(decoded - begin, peak() - begin)
"""


def test_a_large_volume_is_held_once(tmp_path):
    """Per voxel, decoding took 21 bytes beyond the imports, before the answer was there."""
    values = np.random.default_rng(0).integers(-1000, 1000, SHAPE, np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "v.nii")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", CODE, tmp_path / "v.nii", tmp_path / "out"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    decoding, whole = (float(word) * 2**20 / values.size for word in ended.stdout.split())  # bytes a voxel
    assert decoding < 17 and whole < 18, (decoding, whole)
