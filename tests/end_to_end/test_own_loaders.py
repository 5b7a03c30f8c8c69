"""Exceptions in a loader of the user's own: one line that names the case and the place, in every script."""

import numpy as np
import pytest
from conftest import FAST, LOADER, TINY

from guided_diffusion import Segmenter
from guided_diffusion.data.loaders.folder import FolderDataset
from guided_diffusion.data.registry import build_dataset, find_loader
from guided_diffusion.runtime.errors import UserError, run_script

READ, MASK, FIND = (
    LOADER[LOADER.index(start) :].split("\n")[0] for start in ("return read_", "return read_picture_m", "cases = []")
)
TRIP = "if case.name == 'p1': [][1]\n        "
REMEDY = "; python scripts/check_data.py tries every case"


@pytest.fixture
def polyps(tmp_path, save_picture):
    """A function (what is replaced in `LOADER`, by what) that writes the loader: its --data_name, for two cases."""
    for name in ("p0", "p1"):
        save_picture(tmp_path / "data" / name / "photo.png", np.full((32, 40, 3), 7 + int(name[1]), np.uint8))
        save_picture(tmp_path / "data" / name / "truth.png", np.eye(32, 40, dtype=np.uint8) * 255)

    def write(old="", new=""):
        assert old in LOADER
        (tmp_path / "own.py").write_text(LOADER.replace(old, new, 1))
        return f"{tmp_path / 'own.py'}:Polyps"

    return write


@pytest.fixture
def line_of(tmp_path):
    """A function (text) that gives "FILE, line N" of the first line of the loader that holds the text."""

    def find(text):
        lines = (tmp_path / "own.py").read_text().splitlines()
        number = next(number for number, line in enumerate(lines, 1) if text in line)
        return f"{tmp_path / 'own.py'}, line {number}"

    return find


@pytest.fixture
def not_trained(refusal, tmp_path):
    def run(data_name, flags=""):
        line = [f"--data_name {data_name} --data_dir", tmp_path / "data", "--out_dir", tmp_path / "run", TINY]
        return refusal("segmentation_train", [*line, "--max_steps 2", flags])

    return run


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method, statement", [("read_image", READ), ("read_mask", MASK)])
def test_a_method_that_fails_for_a_case_ends_training(polyps, line_of, not_trained, method, statement, workers):
    line = not_trained(polyps(statement, TRIP + statement), f"--num_workers {workers}")
    assert line == f"error: case p1: {line_of('[][1]')}, {method}: IndexError: list index out of range{REMEDY}"


def test_the_innermost_line_of_the_loader_counts_and_what_it_says_becomes_one_line(polyps, line_of, not_trained):
    helper = "return self.inside(case)\n\n    def inside(self, case):\n        raise ValueError('a\\n b')\n"
    line = not_trained(polyps(READ, helper))
    assert line.endswith(f": {line_of('raise ValueError')}, inside: ValueError: a b{REMEDY}")


@pytest.mark.parametrize(
    "old, new, what",
    [
        (FIND, "cases = [].x", "AttributeError: 'list' object has no attribute 'x'"),
        (FIND, "yield Case('p0', (), ()) if self.split else [][1]\n        cases = [][2]", "IndexError: list index"),
        (FIND, "assert False\n        cases = []", "AssertionError"),
    ],
)
@pytest.mark.parametrize("door", ["train", "dry run", "check"])
def test_find_cases_that_fails(polyps, line_of, not_trained, refusal, tmp_path, old, new, what, door):
    name = polyps(old, new)
    if door == "check":
        line = refusal("check_data", [f"--data_name {name} --data_dir", tmp_path / "data", "--out_dir", tmp_path])
    else:
        line = not_trained(name, "--dry_run True" if door == "dry run" else "")
    marked = "[][2]" if "yield" in new else new.split("\n")[0]
    assert line.startswith(f"error: find_cases: {line_of(marked)}, find_cases: {what}")


def test_what_cannot_be_used_names_the_file_and_the_method(polyps, not_trained, tmp_path):
    line = not_trained(polyps(READ, "return [[[1, 2], [3]]]"))
    assert f": {tmp_path / 'own.py'}, read_image: ValueError: setting an array element with a sequence" in line
    line = not_trained(polyps("cases.append(", "cases.append(str(truth)); ("))
    assert f"error: {tmp_path / 'own.py'}: Polyps: find_cases returned a str" in line
    line = not_trained(polyps("(image,), (truth,)", "(image), (truth)"))
    assert line.endswith("with the comma") and f"find_cases: {tmp_path / 'own.py'}, line " in line


def test_other_methods(polyps, line_of, not_trained, refusal, trained, tmp_path):
    normalise = "\n    def normalise(self, image):\n        return image.no\n"
    line = not_trained(polyps("    def find_cases", f"{normalise}\n    def find_cases"))
    assert f"{line_of('image.no')}, normalise: AttributeError: 'Tensor' object has no attribute 'no'{REMEDY}" in line
    labels = "\n    def read_labels(self, case):\n        return case.labels\n"
    line = not_trained(polyps("    def find_cases", f"{labels}\n    def find_cases"), "--classes auto")
    assert f"error: case p0: {line_of('case.labels')}, read_labels: AttributeError: 'Case' object has no" in line
    made = "\n    def __init__(self, *a, **k):\n        super().__init__(*a, **k)\n        self.gone\n"
    line = not_trained(polyps("    def find_cases", f"{made}\n    def find_cases"))
    assert f"error: __init__: {line_of('self.gone')}, __init__: AttributeError: " in line
    shared = "\n    def preload(self):\n        self.gone\n"
    line = not_trained(polyps("    def find_cases", f"{shared}\n    def find_cases"), "--num_workers 1")
    assert f"error: preload: {line_of('self.gone')}, preload: AttributeError: " in line
    item = "\n    def __getitem__(self, index):\n        return super().__getitem__(index)['none']\n"
    line = not_trained(polyps("    def find_cases", f"{item}\n    def find_cases"))
    assert f"{line_of('[' + repr('none'))}, __getitem__: KeyError: 'none'{REMEDY}" in line
    geometry = "\n    def geometry(self, case):\n        return case.affine\n"
    name = polyps("    def find_cases", f"{geometry}\n    def find_cases")
    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text().replace("else ()))", "else (), None, 'v', 0))"))
    line = refusal(
        "segmentation_sample",
        ["--model_path", trained, "--data_dir", tmp_path / "data", f"--data_name {name} --out_dir", tmp_path, FAST],
    )
    assert f"error: case p0: {line_of('case.affine')}, geometry: AttributeError: 'Case' object has no" in line


def test_the_status_is_two(polyps, tmp_path, script, capsys):
    line = [f"--data_name {polyps(READ, '1 / 0')} --data_dir", tmp_path / "data", "--out_dir", tmp_path / "run", TINY]
    with pytest.raises(SystemExit) as end:
        run_script(lambda: script("segmentation_train", [*line, "--max_steps 1"]))
    assert end.value.code == 2 and "read_image: ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_truth_that_fails_in_the_evaluation(polyps, line_of, train, sample, refusal, tmp_path):
    name = polyps()
    results = sample(train(name, tmp_path / "data"), tmp_path / "data", f"{FAST} --data_name {name}")
    polyps(MASK, TRIP + MASK)
    line = refusal("segmentation_eval", ["--pred_dir", results, f"--data_name {name}"])
    first = f"case p1: {line_of('[][1]')}, read_mask: IndexError: list index out of range{REMEDY}"
    assert line.startswith(f"error: 1 of 2 cases could not be evaluated: p1; the first: {first}; the other cases")


def test_from_python_the_cause_is_seen(polyps, train, tmp_path):
    trips = "\n    def normalise(self, image):\n        return image / [1][int(image.max() == 200)]\n"
    dataset = build_dataset(polyps(READ, "raise KeyError(case.name)"), tmp_path / "data", 16)
    with pytest.raises(UserError, match="case p1: .*own.py, line [0-9]+, read_image: KeyError: 'p1'; ") as caught:
        dataset[1]
    assert isinstance(caught.value.__cause__, KeyError)
    name = polyps("    def find_cases", f"{trips}\n    def find_cases")
    checkpoint = train(name, tmp_path / "data")
    segmenter = Segmenter.load(checkpoint, members=1, steps=2, sampler="dpm_solver", data_name=name)
    assert segmenter(np.full((32, 32, 3), 8)).mask.shape == (32, 32)
    with pytest.raises(UserError, match=r"^normalise_raw: .*own.py, line [0-9]+, normalise: IndexError: list index"):
        segmenter(np.full((32, 32, 3), 200))


def test_what_the_system_says_passes_and_a_decoder_of_ones_own_is_named(polyps, line_of, tmp_path):
    with pytest.raises(FileNotFoundError, match="/root/none"):
        build_dataset(polyps(READ, "open('/root/none')"), tmp_path / "data", 16)[0]
    dataset = build_dataset(polyps(READ, "raise OSError('image file is truncated')"), tmp_path / "data", 16)
    with pytest.raises(UserError) as caught:
        dataset[0]
    assert str(caught.value).startswith(f"case p0: {line_of('raise OS')}, read_image: OSError: image file is truncated")


def test_a_file_that_does_not_load_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("x = 1\nx.gone\n")
    with pytest.raises(UserError, match="^bad.py: line 2: AttributeError: 'int' object has no attribute 'gone'$"):
        find_loader("bad.py:A")


@pytest.mark.parametrize("name", ["FOLDER", "own.py:Own"])
def test_bugs_of_the_programs_own_loaders_keep_their_traceback(script, pictures, tmp_path, monkeypatch, name):
    def buggy(self, case):
        raise IndexError("a bug")

    (tmp_path / "own.py").write_text(
        "from guided_diffusion.data.loaders.folder import FolderDataset\n\nclass Own(FolderDataset):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FolderDataset, "read_image", buggy)
    line = [f"--data_name {name} --data_dir", pictures, "--out_dir", tmp_path / "run", TINY, "--max_steps 1"]
    with pytest.raises(IndexError, match="a bug"):
        run_script(lambda: script("segmentation_train", line))


def test_sigterm_ends_a_run_whose_disk_hangs(polyps, script, capsys, tmp_path):
    hang = "import os, signal, time, torch.utils.data as data\n        if data.get_worker_info():\n            "
    hang += "os.kill(os.getppid(), signal.SIGTERM); time.sleep(1000)\n        "
    line = [f"--data_name {polyps(READ, hang + READ)} --data_dir", tmp_path / "data", "--out_dir", tmp_path / "run"]
    assert script("segmentation_train", [*line, TINY, "--max_steps 2 --num_workers 1 --sample_interval 0"]) == 0
    out = capsys.readouterr().out
    assert "SIGTERM: " in out and "trained 0 steps of 2; to go on" in out
    assert (tmp_path / "run" / "model000000.pt").exists()
