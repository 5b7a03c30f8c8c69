"""What several test files share: tiny pictures, volumes and data sets on disk, and the scripts as a user runs them."""

import csv
import gc
import importlib.util
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from pages import browser  # noqa: F401, a fixture
from PIL import Image

from guided_diffusion.checkpoint import checkpoint_digest
from guided_diffusion.config.fields import build
from guided_diffusion.config.options import ProcessOptions
from guided_diffusion.config.settings import Settings
from guided_diffusion.data import phantoms as phantom
from guided_diffusion.io import nifti
from guided_diffusion.io.storage import WorkFolder
from guided_diffusion.runtime.errors import run_script
from guided_diffusion.training.run import Run

# Several threads may sum in another order from run to run, and tests compare runs to the bit.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start beside each other

# A shell's background job ignores Ctrl-C, and so would the scripts that tests start there.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Half as many workers again as cores: many tests wait for processes that they start or kill."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + (cores + 1) // 2


def pytest_collection_finish():
    """Leave what all tests share, modules and the tests themselves, out of every later collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    """Tests marked `gpu`, which `pytest -m gpu` selects, are skipped where there is no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
TINY = (
    "--image_size 32 --num_channels 8 --channel_mult 1,2 --num_res_blocks 1 --attention_resolutions 16 "
    "--num_workers 0 --batch_size 2 --precision fp32 --log_interval 1 "
    "--sample_interval 0 --version v1 --recipe none"
)
FAST = "--num_ensemble 2 --diffusion_steps 2 --dpm_solver True --num_workers 0 --precision fp32"
LOADER = '''"""A loader as a user writes it: pictures photo.png and truth.png in a folder for each case."""
from guided_diffusion.data import Case, SegmentationDataset
from guided_diffusion.files import read_picture, read_picture_mask

class Polyps(SegmentationDataset):
    image_channels = 3
    class_names = ("polyp",)

    def find_cases(self):
        cases = []
        for image in sorted(self.data_dir.glob("*/photo.png")):
            truth = image.parent / "truth.png"
            cases.append(Case(image.parent.name, (image,), (truth,) if truth.is_file() else ()))
        return cases

    def read_image(self, case):
        return read_picture(case.images[0])

    def read_mask(self, case):
        return read_picture_mask(case.masks[0])[None, None]
'''


def run_of(model, diffusion, train, dataset, precision="fp32", start=None):
    """The `Run` of these options on a data set, as `prepare_run` makes it."""
    settings = Settings(model, diffusion, build(ProcessOptions, {}), model.image_size, frozenset(), train=train)
    return Run(settings, precision, dataset, WorkFolder(train.out_dir), start)


@pytest.fixture
def beside_each_other(monkeypatch):
    """A benchmark finds its neighbours, as when it is run by its path."""
    monkeypatch.syspath_prepend(str(SCRIPTS / "benchmarks"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keeps what the tests decompress out of the user's cache, in processes that they start as well."""
    os.environ["MEDSEGDIFF_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def save_picture():
    """A function (path, array) that writes a picture in the format of its suffix, makes the folder, returns path."""

    def save(path, array, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(array)).save(path, **options)
        return path

    return save


@pytest.fixture
def save_palette():
    """A function (path, indices, colours) that writes a palette picture, makes the folder, returns path."""

    def save(path, indices, colours, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.asarray(indices, np.uint8))
        picture.putpalette(np.asarray(colours, np.uint8).tobytes())
        picture.save(path, **options)
        return path

    return save


@pytest.fixture
def save_nifti():
    """A function (path, array, affine) that writes a NIfTI file, makes the folder, returns path."""

    def save(path, array, affine=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.asarray(array), np.eye(4) if affine is None else affine), path)
        return path

    return save


BODY = np.indices((16, 14, 6))[0] > 4  # of the volumes that `mri` makes


def mri(seed=0):
    return np.where(BODY, np.random.default_rng(seed).integers(20, 900, BODY.shape), 0).astype(np.int16)


@pytest.fixture
def volumes(tmp_path, save_nifti):
    """A function (array, ...) that writes a FOLDER data set of volumes whose masks are `BODY`; returns its folder."""

    def write(*arrays, folder="data"):
        for number, array in enumerate(arrays):
            for part, values in (("images", array), ("masks", BODY.astype(np.uint8))):
                save_nifti(tmp_path / folder / part / f"v{number}.nii.gz", values, np.diag([1.0, 1, 2, 1]))
        return tmp_path / folder

    return write


@pytest.fixture
def full_disk():
    """A context manager in which no file may grow beyond 4096 bytes, as on a disk that is full."""

    @contextmanager
    def limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def truncate():
    """A function (path, fraction) that cuts a file short, as a broken download does."""

    def cut(path, fraction=0.5):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])
        return path

    return cut


@pytest.fixture
def reads(monkeypatch):
    """A list to which the file name is added whenever a NIfTI file's data (not only its header) are decoded."""
    names = []
    original = nifti.check_claim

    def counted(path, *args):
        names.append(Path(path).name)
        return original(path, *args)

    monkeypatch.setattr(nifti, "check_claim", counted)  # each decoding begins with it
    return names


# ---- the scripts -------------------------------------------------------------------------------------------------


def words(arguments):
    """A command line's words, from one text or from a list of parts (texts and paths, which may hold blanks)."""
    if isinstance(arguments, str):
        return shlex.split(arguments)
    return [word for part in arguments for word in ([str(part)] if isinstance(part, Path) else shlex.split(part))]


@pytest.fixture(scope="session")
def script():
    """A function (name, arguments) that calls a script's `main` in this process, which saves importing torch anew."""
    modules = {}

    def call(name, arguments):
        if name not in modules:
            spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
            modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[name])
        return modules[name].main(words(arguments))

    return call


@pytest.fixture
def refusal(script, capsys):
    """A function (name, arguments) that runs a script which must fail as it should: one line on stderr, a non-zero
    exit status and no traceback. Returns the line."""

    def call(name, arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_script(lambda: script(name, arguments))
        lines = messages(capsys.readouterr().err)
        assert stopped.value.code not in (0, None)
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return call


def messages(stderr):
    """The lines of stderr without the progress bars, which redraw themselves after a carriage return."""
    lines = [line.strip() for line in stderr.replace("\r", "\n").splitlines()]
    bars = ("training:", "sampling:", "evaluating:", "report:", "caching:", "fetching:", "looking:", "drawing:")
    return [line for line in lines if line and not line.startswith(bars)]


@pytest.fixture(scope="session")
def process():
    """A function (name, arguments) that starts a script as a process of its own group, as a shell does.

    Returns the `Popen`, whose output is text; `finish(process)` waits and returns status, stdout and messages.
    """
    started = []

    def start(name, arguments):
        command = [sys.executable, str(SCRIPTS / f"{name}.py"), *words(arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # Bars in a pipe would be drawn every half minute only, and tests wait for them.
        shown = {"TQDM_MININTERVAL": "0.1"}
        environment = {**os.environ, **shown, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
            child.wait()


def finish(child, timeout=60):
    """Wait for a process of the fixture `process`: its status, stdout, stderr and the messages in stderr."""
    out, err = child.communicate(timeout=timeout)
    return SimpleNamespace(status=child.returncode, out=out, err=err, messages=messages(err))


def files(folder):
    """The files below a folder, as sorted relative paths."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def one_class(mask, probability, uncertainty, members, coarse):
    """`CaseMaps` of a single class from arrays without that axis."""
    from guided_diffusion.inference.answer import CaseMaps

    coarse = None if coarse is None else coarse[None]
    return CaseMaps(mask[None], probability[None], uncertainty[None], members[:, None], coarse)


def strict_json(path):
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


# ---- phantoms of 32 pixels, and a checkpoint ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def isic(tmp_path_factory):
    """ISIC phantoms, 40 x 32 pixels: Train (4) with masks and labels, Test (3)."""
    folder = tmp_path_factory.mktemp("isic")
    phantom.write_isic(folder, num_train=4, num_test=3, size=32)
    return folder


@pytest.fixture(scope="session")
def brats(tmp_path_factory):
    """BraTS phantoms: training (2 volumes of 32 x 32 x 3), testing (1)."""
    folder = tmp_path_factory.mktemp("brats")
    phantom.write_brats(folder, num_train=2, num_test=1, size=32, num_slices=3)
    return folder


@pytest.fixture(scope="session")
def slices(tmp_path_factory):
    """BraTS phantoms as single slices of 32 x 32: training (3), testing (2)."""
    folder = tmp_path_factory.mktemp("slices")
    phantom.write_brats_slices(folder, num_train=3, num_test=2, size=32)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A FOLDER data set of 4 pictures, 40 x 32 pixels: images/ and masks/."""
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder, 4)
    return folder


def write_folder(folder, count):
    """Write a FOLDER data set of ISIC phantoms, 40 x 32 pixels."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        image, mask, _ = phantom.isic_case(index, size=32)
        Image.fromarray(image).save(folder / "images" / f"case{index}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"case{index}.png")


@pytest.fixture(scope="session")
def trained(script, pictures, tmp_path_factory):
    """A checkpoint of 2 steps on `pictures`."""
    out = tmp_path_factory.mktemp("trained")
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", out]
    script("segmentation_train", [*data, TINY, "--max_steps 2 --lr 1e-2"])  # fast, so that the answer is not flat
    return out / "model000002.pt"


@pytest.fixture
def train(script, tmp_path):
    """A function (data name, folder, flags) that trains two steps and returns the checkpoint."""

    def run(data_name, folder, flags="", steps=2):
        out = tmp_path / "run"
        line = [f"--data_name {data_name} --data_dir", folder, "--out_dir", out, TINY, f"--max_steps {steps}", flags]
        script("segmentation_train", line)
        return out / f"model{steps:06d}.pt"

    return run


@pytest.fixture
def sample(script, tmp_path):
    """A function (checkpoint, folder, flags) that samples into a new folder and returns that."""

    def run(checkpoint, folder, flags=FAST, out="results"):
        script(
            "segmentation_sample",
            ["--model_path", checkpoint, "--data_dir", folder, "--out_dir", tmp_path / out, flags],
        )
        return tmp_path / out

    return run


# ---- results with known masks ------------------------------------------------------------------------------------


@pytest.fixture
def own_checkpoint(trained, tmp_path):
    """A checkpoint of its own, into which a test may write."""
    return shutil.copy(trained, tmp_path / "own.pt")


@pytest.fixture
def write_results(pictures):
    """A function (checkpoint, folder, change) that writes a results folder whose masks and probabilities are changed
    truths, with a manifest as of that checkpoint; returns the folder."""

    def write(checkpoint, folder, change, split="all", **settings):
        for part in ("masks", "probability"):
            (folder / part).mkdir(parents=True)
        for path in sorted((pictures / "masks").iterdir()):
            with Image.open(path) as picture:
                mask = change(np.asarray(picture) > 0)
            Image.fromarray((mask > 0.5).astype(np.uint8) * 255).save(folder / "masks" / path.name)
            levels = np.clip(mask.astype(np.float64), 0.02, 0.98) * 65535
            Image.fromarray(levels.round().astype(np.uint16)).save(folder / "probability" / path.name)
        recorded = {"num_ensemble": 0, "fuse": "mean", "temperature": 1.0, "sampler": "none", "timesteps": []}
        data = {"data_name": "FOLDER", "data_dir": str(pictures), "split": split}
        manifest = {"checkpoint_sha256": checkpoint_digest(checkpoint), "settings": recorded | settings, "data": data}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return write


# ---- a blob store ------------------------------------------------------------------------------------------------


class FolderStore:
    """blobfile on folders that stand for buckets: gs://bucket/x is FOLDER/gs/bucket/x.

    failing: how many of the next uploads fail; used: all (what was done, path).
    """

    def __init__(self, folder):
        import blobfile

        self.folder, self.blobfile, self.context = folder, blobfile, blobfile.create_context()
        self.failing, self.used = 0, []

    def local(self, path):
        """Where a path lies on this machine; one without a scheme is itself."""
        scheme, found, rest = str(path).partition("://")
        return str(self.folder / scheme / rest) if found else str(path)

    def copy(self, source, target, overwrite=False):
        self.used.append(("upload" if "://" in target else "download", target if "://" in target else source))
        if "://" in target and self.failing:
            self.failing -= 1
            raise self.blobfile.RequestFailure("the store is out of order", "PUT", 503, None, None)
        os.makedirs(os.path.dirname(self.local(target)), exist_ok=True)
        self.context.copy(self.local(source), self.local(target), overwrite=overwrite)

    def stat(self, path):
        if os.path.isdir(self.local(path)):  # stores know no folders
            raise FileNotFoundError(path)
        return self.context.stat(self.local(path))

    def scandir(self, path):
        return self.context.scandir(self.local(path))

    def remove(self, path):
        self.context.remove(self.local(path))

    def uploads(self):
        """The paths that were uploaded, without the trials whether that is possible."""
        return [path for done, path in self.used if done == "upload" and "/.writable" not in path]


@pytest.fixture
def blobs(tmp_path, monkeypatch):
    """A `FolderStore` in place of gs:// and az://, and a cache of this test's own."""
    from guided_diffusion.io import storage

    fake = FolderStore(tmp_path / "store")
    monkeypatch.setattr(storage, "store", lambda: fake)
    monkeypatch.setenv("MEDSEGDIFF_CACHE", str(tmp_path / "cache"))
    return fake
