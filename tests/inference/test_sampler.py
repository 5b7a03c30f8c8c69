"""The sampling loop: how work is split and shared, what memory and errors do to it, and several processes as one."""

import hashlib
import json

import numpy as np
import processes
import pytest
import torch
from conftest import files
from helpers import torchrun
from PIL import Image

from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.data.cases import Case, Unit
from guided_diffusion.inference.sampler import batches_of, rows_at_once, share_of
from guided_diffusion.inference.segmenter import Segmenter
from guided_diffusion.inference.writer import ResultWriter
from guided_diffusion.models.medsegdiff import MedSegDiffV1

FLAGS = "--num_ensemble 3 --diffusion_steps 2 --dpm_solver True --num_workers 0 --precision fp32 --save_samples True"


def units_of(*lengths):
    """Units over consecutive indices: 1 stands for a 2-D case, more for a volume of so many slices."""
    units, index = [], 0
    for number, length in enumerate(lengths):
        indices = tuple(range(index, index + length))
        volume = None if length == 1 else f"v{number}"
        units.append(Unit(f"u{number}", tuple(Case(f"c{i}", (), volume=volume) for i in indices), indices))
        index += length
    return units


def test_batches_hold_cases_in_order_and_never_two_volumes():
    assert batches_of(units_of(1, 1, 1, 1, 1), 2) == [[0, 1], [2, 3], [4]]
    assert batches_of(units_of(3, 4), 2) == [[0, 1], [2], [3, 4], [5, 6]]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("lengths", [(1,) * 11, (3, 4, 5), (2,)])
def test_processes_share_all_cases_once_in_the_batches_of_one_process(processes, lengths):
    units = units_of(*lengths)
    shares = [share_of(units, 2, process, processes) for process in range(processes)]
    assert sorted(unit.name for share in shares for unit in share) == sorted(unit.name for unit in units)
    together = sorted(batch for share in shares for batch in batches_of(share, 2))
    assert together == sorted(batches_of(units, 2))


def test_the_published_recipe_samples_as_the_published_script(trained, tmp_path):
    checkpoint = load_checkpoint(trained)
    checkpoint.config["train"]["recipe"] = "published"
    save_checkpoint(checkpoint, tmp_path / "published.pt")
    how = {"device": "cpu", "precision": "fp32"}
    plans = [Segmenter.load(path, **how).sampler.plan for path in (trained, tmp_path / "published.pt")]
    assert [(plan.published, plan.sampler, plan.fuse) for plan in plans] == [
        ("", "bernoulli", "mean"),
        ("v1", "dpm_solver", "staple"),
    ]


def test_rows_follow_the_size_and_the_flag():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert rows_at_once("7", cpu, 64) == 7
    assert rows_at_once("auto", cpu, 64) == 32 and rows_at_once("auto", cpu, 256) == 2
    assert rows_at_once("auto", cpu, 4096) == 1 and rows_at_once("auto", gpu, 256) == 64


def sample(script, trained, pictures, out, extra=""):
    script("segmentation_sample", ["--model_path", trained, "--data_dir", pictures, "--out_dir", out, FLAGS, extra])
    return out


def pixels(folder):
    """The values of every picture in a results folder."""
    return {name: np.asarray(Image.open(folder / name)).astype(int) for name in files(folder) if name.endswith(".png")}


@pytest.fixture(scope="module")
def whole(script, trained, pictures, tmp_path_factory):
    """The pictures of a sampling in which all images and members go through the network at once."""
    out = tmp_path_factory.mktemp("whole") / "results"
    return pixels(sample(script, trained, pictures, out, "--batch_size 4 --sample_batch_size 100"))


@pytest.mark.parametrize(
    "extra", ["--sample_batch_size 1", "--sample_batch_size 5", "--batch_size 3", "--num_workers 2"]
)
def test_results_do_not_depend_on_how_the_work_is_split(script, trained, pictures, tmp_path, whole, extra):
    split = pixels(sample(script, trained, pictures, tmp_path / "split", extra))
    assert whole.keys() == split.keys()
    for name, values in whole.items():
        # Of 65535 levels a 1e-5 is less than one; a pixel at the cut of 0.5 may fall to either side.
        tolerance = 1 if name.startswith(("probability", "uncertainty")) else 255
        assert np.abs(split[name] - values).max() <= tolerance and (split[name] != values).mean() < 0.01, name


class OutOfMemory(RuntimeError):
    """What torch raises."""


@pytest.fixture
def little_memory(monkeypatch):
    """Passes of the network of more than two rows fail; the list of the passes' rows."""
    rows, forward = [], MedSegDiffV1.forward

    def limited(model, x_t, t, condition):
        rows.append(len(x_t))
        if len(x_t) > 2:
            raise OutOfMemory("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(model, x_t, t, condition)

    monkeypatch.setattr(MedSegDiffV1, "forward", limited)
    return rows


def test_when_memory_runs_out_the_passes_are_halved(script, trained, pictures, tmp_path, little_memory, capsys):
    out = sample(script, trained, pictures, tmp_path / "results")
    tried = [rows for rows in little_memory if rows > 2]
    assert tried == [12, 6, 3] and set(little_memory[3:]) == {1}
    assert "goes on with 1 images x members at once" in capsys.readouterr().out
    assert len(list((out / "masks").iterdir())) == 4


def test_a_size_that_was_asked_for_and_does_not_fit_is_an_error(script, trained, pictures, tmp_path, little_memory):
    with pytest.raises(RuntimeError, match="out of memory"):
        sample(script, trained, pictures, tmp_path / "results", "--sample_batch_size 6")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_writing_ends_the_run(script, trained, pictures, tmp_path, monkeypatch, workers):
    written = []

    def fails(self, unit, maps):
        written.append(unit.name)
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr(ResultWriter, "_write_image", fails)
    with pytest.raises(OSError, match="No space"):
        sample(script, trained, pictures, tmp_path / "results", f"--batch_size 1 --num_workers {workers}")
    assert written == ["case0"] or workers


def test_a_compiled_network_gives_the_same_and_reports_its_warm_up(
    script, trained, pictures, tmp_path, monkeypatch, capsys
):
    compiled = []

    def compile(forward):  # the real one takes a minute
        def call(*arguments):
            compiled.append(len(arguments[0]))
            return forward(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    plain = pixels(sample(script, trained, pictures, tmp_path / "plain"))
    assert not compiled and "compilation" not in capsys.readouterr().out
    other = pixels(sample(script, trained, pictures, tmp_path / "compiled", "--compile True --batch_size 4"))
    assert compiled == [12, 12] and capsys.readouterr().out.count("with the network's compilation, took") == 1
    assert all((plain[name] == other[name]).all() for name in plain)


def test_seconds_and_cases_add_up_over_runs(script, trained, pictures, tmp_path):
    out = sample(script, trained, pictures, tmp_path, "--num_samples 1")
    first = json.loads((out / "manifest.json").read_text())
    sample(script, trained, pictures, tmp_path)
    second = json.loads((out / "manifest.json").read_text())
    sample(script, trained, pictures, tmp_path)
    third = json.loads((out / "manifest.json").read_text())
    assert first["cases_sampled"] == 1 and second["cases_sampled"] == third["cases_sampled"] == 4
    assert 0 < first["seconds"] < second["seconds"] <= third["seconds"]


# ---- several processes -----------------------------------------------------------------------------------------------


def digests(folder):
    """Of all but what says when, where and in how many processes it was made."""
    names = [name for name in files(folder) if not name.endswith((".json", "report.html"))]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def two_processes(words, folder):
    """What each of two processes that sample together prints."""
    ended = processes.finish(processes.start_ranks(2, processes.sample, words, folder=folder), folder)
    assert ended.statuses == [0, 0], ended.outputs
    return ended.outputs


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_two_processes_give_the_very_results_of_one_and_go_on_after_a_kill(
    script, trained, pictures, brats, tmp_path, kind
):
    checkpoint, data = trained, pictures
    if kind == "volumes":
        data = brats / "training"
        run = ["--data_dir", data, "--out_dir", tmp_path / "run", "--image_size 32 --num_channels 8 --channel_mult 1,2"]
        rest = "--num_res_blocks 1 --num_workers 0 --batch_size 2 --precision fp32 --max_steps 2 --lr 1e-2"
        script("segmentation_train", [*run, rest])
        checkpoint = tmp_path / "run" / "model000002.pt"
    flags = FLAGS + " --batch_size 1 --seed 3"
    one, two = tmp_path / "one", tmp_path / "two"
    script("segmentation_sample", ["--model_path", checkpoint, "--data_dir", data, "--out_dir", one, flags])
    where = ["--model_path", str(checkpoint), "--data_dir", str(data), "--out_dir", str(two), *flags.split()]
    printed = "".join(two_processes(where, tmp_path))
    assert digests(two) == digests(one)
    assert json.loads((two / "manifest.json").read_text())["processes"] == 2
    assert printed.count("2 processes (cpu)") == 1 and printed.count("written") <= 1
    next(two.glob("masks/*" if kind == "pictures" else "*_seg.nii.gz")).unlink()  # as if killed before it was written
    two_processes(where, tmp_path)
    assert digests(two) == digests(one)


def test_a_users_mistake_among_processes_is_reported_once(trained, pictures, tmp_path):
    missing = str(tmp_path / "nothing")
    ended = torchrun(["--model_path", str(trained), "--data_dir", missing, "--out_dir", str(tmp_path)])
    assert ended.returncode != 0
    assert ended.stderr.count("no such folder") == 1
