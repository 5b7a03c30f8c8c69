"""--dry_run: what it prints, that it writes nothing, and its estimate of memory against what autograd keeps."""

import re

import pytest
import torch
import yaml
from conftest import TINY, files
from guided_diffusion.dry_run import estimate_training
from test_config import values

from guided_diffusion.config import ModelOptions, build
from guided_diffusion.medsegdiff import build_model


@pytest.fixture
def dry(script, pictures, tmp_path, capsys):
    """A function (flags) that runs dry and returns what is printed: the YAML's values and the text."""

    def run(flags=""):
        capsys.readouterr()
        line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", TINY, flags]
        assert script("segmentation_train", [*line, "--dry_run True"]) == 0
        text = capsys.readouterr().out
        return yaml.safe_load(text), text

    return run


def test_it_prints_what_would_run_and_writes_nothing(dry, pictures, tmp_path):
    before = files(pictures)
    record, text = dry("--preset S --num_channels 8 --channel_mult 1,2")
    assert not (tmp_path / "run").exists() and files(pictures) == before
    assert record["objective"] == "x0" and record["mask_loss"] != "auto" and record["input_scale"] == 0.1
    assert record["num_res_blocks"] == 1 and record["num_channels"] == 8 and "dry_run" not in record
    assert "# data: 4 cases of " in text and "3 channels" in text and "nothing was written" in text
    assert "# memory for training on cpu: about " in text and "how it is estimated: 2 images at once in fp32" in text


@pytest.mark.parametrize("flags", ["--version v2", "--version v2 --recipe auto --coarse_loss mse"])
def test_what_it_prints_is_a_config_and_what_a_run_records(dry, script, tmp_path, flags):
    record, text = dry(flags)
    (tmp_path / "run.yaml").write_text(text)
    assert record.items() <= (values(f"--config {tmp_path / 'run.yaml'}")).items()
    script("segmentation_train", ["--config", tmp_path / "run.yaml", "--max_steps 1"])
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == record | {"max_steps": 1}


def test_a_mistake_is_told_as_training_would(refusal, tmp_path):
    line = ["--data_name FOLDER --data_dir", tmp_path / "none", "--dry_run True"]
    assert "no such folder" in refusal("segmentation_train", line)


def test_several_processes_share_the_batch(dry, monkeypatch):
    assert "2 images at once" in dry("--multi-gpu 0,1 --batch_size 3")[1]
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "on each of 3 processes" in dry("--batch_size 7")[1] and "3 images at once" in dry("--batch_size 7")[1]
    assert "1 image at once" in dry("--batch_size 7 --microbatch 1")[1]
    monkeypatch.setenv("RANK", "1")
    assert dry("--batch_size 7")[1] == ""


def test_shards_are_shared_by_all_processes(dry, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    (whole,), (split,) = (
        re.findall(r"weights (\d+) MiB", dry(f"--num_channels 64 --batch_size 8 --fsdp {fsdp}")[1])
        for fsdp in (False, True)
    )
    assert int(whole) / int(split) == pytest.approx(8, rel=0.2)
    text = dry("--num_channels 64 --batch_size 8 --fsdp True")[1]
    assert "blocks gathered from shards" in text and "gradients in exchange" not in text
    (saving,) = re.findall(r"while it writes a checkpoint the first process takes (\d+) MiB of main memory", text)
    assert int(saving) == pytest.approx(4 * int(whole), abs=4)


# ---- memory ------------------------------------------------------------------------------------------------------

SIZES = {"image_size": 32, "num_channels": 16, "channel_mult": "1,2", "num_res_blocks": 1}


def kept_by_autograd(model, images, draws=1, alone=False):
    """Bytes of all that a real forward pass keeps for the backward pass, but for weights; alone: without diffusion."""
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())  # held, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        condition = model.encode(torch.randn(images, 3, 32, 32)).rows(torch.arange(images).repeat_interleave(draws))
        if alone:
            output = condition.coarse
        else:
            output = model(torch.randn(images * draws, 1, 32, 32), torch.zeros(images * draws).long(), condition)[0]
    assert output.requires_grad
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("version", ["v1", "v2", "unet"])
def test_activations_are_what_autograd_keeps_and_a_little_more(version):
    options = build(ModelOptions, {**SIZES, "version": version})
    memory = estimate_training(options, 3, 1, 0, images=4, precision="fp32", averages=2)
    model = build_model(options, 3, 1)
    count = sum(p.numel() for p in model.parameters())
    assert memory.parameters == count and memory.gradients == 4 * count
    assert memory.optimizer == memory.averages == 8 * count and memory.exchanged == 0
    kept = kept_by_autograd(model, 4)
    assert kept <= memory.activations <= 1.5 * kept


@pytest.mark.parametrize("draws", [1, 4])
def test_with_draws_and_stages_activations_are_those_of_the_larger_stage(draws):
    """Of one draw the condition model's at full resolution are, of many the diffusion's."""
    flags = {"version": "v2", "ss_former": "add", "diffusion_level": 1, "diffusion_channels": 16 * draws}
    options = build(ModelOptions, {**SIZES, **flags})
    given = {"images": 4, "precision": "fp32", "averages": 1, "draws": draws}
    (whole, staged) = (estimate_training(options, 3, 1, 0, stages=stages, **given) for stages in (False, True))
    model = build_model(options, 3, 1)
    everything, first = kept_by_autograd(model, 4, draws), kept_by_autograd(model, 4, draws, alone=True)
    model.fix_condition(True)
    second = kept_by_autograd(model, 4, draws)
    assert everything <= whole.activations <= 1.5 * everything
    assert (second > first) == (draws > 1)
    assert max(first, second) <= staged.activations <= 1.5 * max(first, second)
    assert staged.activations < whole.activations and staged.parameters == whole.parameters


def test_the_parameters_of_class_labels_count():
    options = build(ModelOptions, {**SIZES, "version": "v2", "class_cond": True})
    memory = estimate_training(options, 3, 1, 2, images=4, precision="fp32", averages=1)
    assert memory.parameters == sum(p.numel() for p in build_model(options, 3, 1, 2).parameters())


def test_a_dry_run_counts_the_draws(dry):
    flags = "--version v2 --recipe staged --num_channels 32"
    found = {}
    for draws in (1, 8):
        text = dry(f"{flags} --noise_draws {draws}")[1]
        found[draws] = int(re.search(r"activations (\d+) MiB", text)[1])
        assert (", with 8 draws of noise each, in fp32" in text) == (draws == 8)
    assert found[8] > 1.5 * found[1]


def test_activations_grow_with_images_and_shrink_by_checkpoints_and_bf16():
    def activations(images=4, precision="fp32", **flags):
        options = build(ModelOptions, {"version": "v1", **SIZES, **flags})
        return estimate_training(options, 3, 1, 0, images=images, precision=precision, averages=1).activations

    full = activations()
    assert activations(images=8) == pytest.approx(2 * full, rel=0.05)
    assert activations(use_checkpoint=True) < 0.8 * full and activations(precision="bf16") < 0.8 * full
