"""Exported models: what their folder holds, what loads from it, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from guided_diffusion import Segmenter
from guided_diffusion.checkpoint import checkpoint_digest, checkpoint_file, load_checkpoint
from guided_diffusion.evaluation.temperature_fit import check_origin
from guided_diffusion.exported import SETTINGS, WEIGHTS, is_exported, write_exported
from guided_diffusion.io.archives import file_hash
from guided_diffusion.runtime.errors import UserError

DRAWN = {"members": 2, "steps": 2, "sampler": "dpm_solver", "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def checkpoint(trained):
    return load_checkpoint(trained)


@pytest.fixture
def folder(tmp_path, checkpoint):
    """An exported model, with what its loader kept as CT volumes have it."""
    loader = {**checkpoint.config["loader"], "ct_window": (-160.0, 240.0), "is_nifti": True}
    kept = dataclasses.replace(checkpoint, config=checkpoint.config | {"loader": loader})
    write_exported(tmp_path, kept, "ema")
    return tmp_path


def changed(folder, **values):
    path = folder / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def with_weights(folder, tensors):
    save_file(tensors, folder / WEIGHTS)
    settings = json.loads((folder / SETTINGS).read_text())
    changed(folder, weights=settings["weights"] | {"sha256": file_hash(folder / WEIGHTS)})


def refusal_of(folder):
    with pytest.raises(UserError) as error:
        load_checkpoint(folder, where="--model_path DIR")
    line = str(error.value)
    assert line.startswith("--model_path DIR: ") and "\n" not in line
    return line


def test_it_segments_as_its_checkpoint_does_and_normalises_as_its_loader(folder, checkpoint, trained, tmp_path):
    image = np.random.default_rng(0).uniform(-500, 500, (32, 32, 3)).astype(np.float32)
    shared, own = Segmenter.load(folder, **DRAWN), Segmenter.load(trained, **DRAWN)
    own.loader.is_nifti, own.loader.ct_window = True, (-160.0, 240.0)
    for mine, other in zip(own(image, axes="HWC"), shared(image, axes="HWC"), strict=True):
        assert np.array_equal(mine, other)
    assert shared.class_names == own.class_names and shared.checkpoint.step == checkpoint.step


def test_its_folder_names_no_place_and_no_state_of_the_run(folder, checkpoint, trained, pictures):
    text = (folder / SETTINGS).read_text()
    assert str(pictures) not in text and str(trained.parent) not in text and "optimizer" not in text
    assert "validation" not in json.loads(text) and "cache_dir" not in json.loads(text)["config"]["digests"]
    assert (folder / WEIGHTS).stat().st_mode == (folder / SETTINGS).stat().st_mode  # whoever may read one may read both
    average = next(iter(checkpoint.ema.values()))
    assert all(torch.equal(value, average[name]) for name, value in load_file(folder / WEIGHTS).items())
    assert load_checkpoint(folder).config["digests"]["data_dir"] == checkpoint.config["digests"]["data_dir"]


def test_whoever_may_read_its_settings_may_read_its_weights(folder):
    assert (folder / WEIGHTS).stat().st_mode == (folder / SETTINGS).stat().st_mode


def test_the_weights_that_were_chosen_are_the_only_ones(tmp_path, checkpoint):
    write_exported(tmp_path, checkpoint, "model")
    loaded = load_checkpoint(tmp_path)
    assert all(torch.equal(value, checkpoint.model[name]) for name, value in loaded.weights("ema")[1].items())
    assert loaded.weights("model")[0] == "model"
    with pytest.raises(UserError, match="--weights 0.9999: the exported model has only model; leave it out"):
        loaded.weights("0.9999")


def test_it_is_found_and_has_a_sum_that_holds_its_weights(folder):
    assert is_exported(folder) and checkpoint_file(folder) == folder
    before = checkpoint_digest(folder)
    with_weights(folder, {name: value + 1 for name, value in load_file(folder / WEIGHTS).items()})
    assert checkpoint_digest(folder) != before


def test_a_run_cannot_go_on_from_it(folder):
    with pytest.raises(UserError, match="is an exported model, without an optimizer's state; begin a new run with it"):
        load_checkpoint(folder, to_train=True)


def test_no_temperature_is_fitted_into_it(folder):
    before = (folder / SETTINGS).read_bytes()
    with pytest.raises(UserError, match="is an exported model; fit into the run's checkpoint, then export it again"):
        check_origin(folder, {})
    assert (folder / SETTINGS).read_bytes() == before


def test_a_stranger_s_weights_are_compared_with_the_network(folder):
    good = load_file(folder / WEIGHTS)
    name = next(iter(good))
    with_weights(folder, good | {name: torch.full_like(good[name], torch.nan)})
    assert f"{name} holds numbers that are not finite" in refusal_of(folder)
    with_weights(folder, good | {name: torch.zeros(10**6)})
    assert "have the shape [1000000], not" in refusal_of(folder)
    with_weights(folder, {key: value for key, value in good.items() if key != name})
    assert f"lacks the weights {name}, which its network needs" in refusal_of(folder)
    with_weights(folder, good | {"more": torch.zeros(1)})
    assert "holds the weights more, which its network does not have" in refusal_of(folder)
    with_weights(folder, good | {name: good[name].long()})
    assert "of the type torch.int64" in refusal_of(folder)


@pytest.mark.parametrize("claim", [10**12, 10**19])
def test_sizes_that_the_header_claims_are_compared_with_the_file(folder, claim):
    header = json.dumps({"a": {"dtype": "F32", "shape": [claim // 4], "data_offsets": [0, claim]}}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"0" * 64)
    changed(folder, weights={"file": WEIGHTS, "sha256": file_hash(folder / WEIGHTS), "of": "model"})
    assert "model.safetensors is no file of safetensors, or a damaged one (" in refusal_of(folder)


def test_weights_larger_than_the_free_memory_are_refused_before_they_are_read(folder, monkeypatch):
    monkeypatch.setattr("guided_diffusion.io.memory.NEGLIGIBLE", 0)
    monkeypatch.setattr("guided_diffusion.io.memory.free_memory", lambda: 1000)
    with pytest.raises(UserError, match="model.safetensors: has weights, which need"):
        load_checkpoint(folder)


def test_damage_and_files_of_other_programs_are_told_in_one_line(folder, truncate):
    truncate(folder / WEIGHTS)
    assert "model.safetensors is damaged, or not the file that config.json names; copy both again" in refusal_of(folder)
    (folder / WEIGHTS).unlink()
    assert "has no model.safetensors; copy all files of the exported folder" in refusal_of(folder)
    changed(folder, format="medsegdiff-export-7", written_by="9.0.0")
    assert "was written by version 9.0.0, newer than this one" in refusal_of(folder)
    (folder / SETTINGS).write_text('{"model_type": "segformer"}')
    assert "its config.json is of another program" in refusal_of(folder)


def test_the_version_of_a_stranger_s_file_moves_no_cursor(folder):
    config = json.loads((folder / SETTINGS).read_text())["config"]
    config["model"]["mood"] = 1
    changed(folder, written_by="9.9.9\x1b[2J\nerased", config=config)
    assert "the newer version 9.9.9\\x1b[2J\\nerased, whose option mood" in refusal_of(folder)


@pytest.mark.parametrize(
    "values, what",
    [
        ({"step": -1}, '"step"'),
        ({"image_channels": "three"}, '"image_channels"'),
        ({"weights": {"file": "../../etc/passwd", "sha256": "0" * 64, "of": "model"}}, '"weights.file"'),
        ({"class_names": []}, '"class_names"'),
        ({"config": {"model": 3}}, '"config'),
    ],
)
def test_settings_of_wrong_types_name_their_place(folder, values, what):
    changed(folder, **values)
    with pytest.raises(UserError) as error:
        load_checkpoint(folder)
    assert what in str(error.value) and "config.json" in str(error.value)


def test_a_loader_file_that_it_names_does_not_run(folder, tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    settings = json.loads((folder / SETTINGS).read_text())
    settings["config"]["data"]["data_name"] = str(tmp_path / "evil.py:Evil")
    changed(folder, **settings)
    with pytest.raises(UserError, match="data_name="):
        Segmenter.load(folder, **DRAWN)


def test_what_a_loader_keeps_must_be_plain(tmp_path, checkpoint):
    kept = {**checkpoint.config["loader"], "means": torch.zeros(3)}
    with pytest.raises(UserError, match="the loader's attribute means is tensor.* which config.json cannot hold"):
        write_exported(tmp_path, dataclasses.replace(checkpoint, config=checkpoint.config | {"loader": kept}), "ema")
