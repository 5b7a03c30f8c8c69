"""manifest.json of a stranger: read where it has the right types, else refused in one line."""

import copy
import json

import pytest
from helpers import MANIFEST

from guided_diffusion.inference.manifest import read_manifest
from guided_diffusion.inference.predictions import Predictions
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.runtime.errors import UserError

WHOLE = {
    **MANIFEST,
    "status": "complete",
    "settings": {**MANIFEST["settings"], "fuse": "staple", "temperature": 1.0, "seed": 0, "solver_order": None},
    "data": {"data_name": "ISIC", "data_dir": "/data", "split": "test", "val_fraction": 0.1, "group_key": ""},
    "config": {"data": {"data_name": "ISIC"}, "model": {"version": "v2"}, "loader": {"class_values": [[1]]}},
    "seconds": 1.5,
    "unread": ["a"],
}
WRONG = [  # the path of a value, and what it becomes
    ("", []),
    ("", None),
    ("", 3),
    ("", "x"),
    ("step", "5"),
    ("step", 1e9 + 0.5),
    ("step", 10**30),
    ("checkpoint_sha256", ["aa"]),
    ("checkpoint_sha256", None),
    ("settings", []),
    ("settings", None),
    ("settings.num_ensemble", "3"),
    ("settings.num_ensemble", -1),
    ("settings.num_ensemble", 2.5),
    ("settings.num_ensemble", True),
    ("settings.num_ensemble", 10**18),
    ("settings.timesteps", {"0": 1}),
    ("settings.timesteps", [1, "2"]),
    ("settings.timesteps", 20),
    ("settings.temperature", "warm"),
    ("settings.fuse", 7),
    ("data", "ISIC"),
    ("data.split", "tset"),
    ("data.data_dir", 7),
    ("data.data_name", {}),
    ("data.val_fraction", "0.1"),
    ("data.val_fraction", 3),
    ("data.group_key", "("),
    ("data.max_megapixels", -1),
    ("config", []),
    ("config.data", []),
    ("config.data.group_key", "[a"),
    ("config.model", {"version": {"v": 2}}),
    ("config.calibration", {"temperature": "2", "cases": 3, "split": "val"}),
    ("config.calibration", {}),
    ("versions", []),
    ("versions", {"torch": 2}),
    ("unread", "a"),
    ("seconds", "1"),
    ("cases_sampled", [1]),
]


def changed(place, value):
    """`WHOLE` with another value at a place such as "data.split"."""
    if not place:
        return value
    manifest = copy.deepcopy(WHOLE)
    *above, last = place.split(".")
    part = manifest
    for key in above:
        part = part[key]
    part[last] = value
    return manifest


@pytest.mark.parametrize(("place", "value"), WRONG, ids=range(len(WRONG)))
def test_wrong_types_are_named_with_their_place(tmp_path, place, value):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(changed(place, value)))
    doors = (read_manifest, Predictions, lambda folder: ResultsFolder(folder, copy.deepcopy(MANIFEST)))
    for door in doors:
        with pytest.raises(UserError) as caught:
            door(tmp_path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and message.isprintable()
        assert message.endswith("; correct it, or restore the file as it was written")
        assert place.rpartition(".")[2] in message
    assert json.loads(path.read_text()) == changed(place, value)  # nothing was written over it


@pytest.mark.parametrize("place", ["checkpoint", "data.data_dir", "config.data.data_dir"])
def test_places_hold_no_control_character(tmp_path, place):
    (tmp_path / "manifest.json").write_text(json.dumps(changed(place, "a\0b")))
    with pytest.raises(
        UserError, match=rf"manifest.json: {place.rpartition('.')[2]} a\\x00b: holds a control character"
    ):
        read_manifest(tmp_path)


def test_manifests_of_all_versions_are_read(tmp_path):
    assert read_manifest(tmp_path) == {}
    old = {"checkpoint": "m.pt", "settings": {"time_spacing": "uniform", "dynamic_threshold": 0}, "data": {}}
    for manifest in ({}, WHOLE, MANIFEST, old, {**WHOLE, "new_key": [1, {"a": 2}]}):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        assert read_manifest(tmp_path) == manifest


def test_a_manifest_that_lacks_what_it_is_compared_by_names_the_difference(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"checkpoint_sha256": "aa", "data": {"data_dir": "/data"}}))
    with pytest.raises(UserError, match="these results were made with --num_ensemble None, now it is 2"):
        ResultsFolder(tmp_path, copy.deepcopy(MANIFEST))
    part = {**MANIFEST, "settings": {"num_ensemble": 2}}
    (tmp_path / "manifest.json").write_text(json.dumps(part))
    with pytest.raises(UserError, match="made with 0 steps of an unknown sampler, now it is 100 steps of ddpm"):
        ResultsFolder(tmp_path, copy.deepcopy(MANIFEST))
