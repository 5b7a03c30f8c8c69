"""The model card: its parts, what it leaves out, and the limits it states."""

from types import SimpleNamespace

import pytest
from helpers import evaluation_of

from guided_diffusion.evaluation.summary import summary_of
from guided_diffusion.report.model_card import shown_checkpoint, write_card

DATA = SimpleNamespace(data_dir="/data/clinic")
MANIFEST = {
    "checkpoint": "m.pt",
    "checkpoint_sha256": "abcdef" * 8,
    "step": 7,
    "device": "cpu",
    "settings": {"num_ensemble": 3, "timesteps": [9, 5, 1]},
    "data": {"data_name": "FOLDER", "split": "test"},
    "config": {
        "model": {"version": "v1", "num_channels": 8},
        "data": {"data_name": "FOLDER", "data_dir": "/data/own", "val_fraction": 0.25},
        "train": {"lr": 0.001, "out_dir": "/private/run", "num_workers": 4},
        "diffusion": {"objective": "x0"},
    },
}


def card_of(folder, manifest=MANIFEST, leak=None, part="test", **changes):
    evaluation = evaluation_of(a={"dice": 0.5}, b={"dice": 1.0})
    for name, value in changes.items():
        setattr(evaluation, name, value)
    path = write_card(folder, summary_of(evaluation), manifest, DATA, part, leak)
    assert path == folder / "model_card.md" and [entry.name for entry in folder.iterdir()] == [path.name]
    return path.read_text()


def test_it_says_what_was_trained_and_measured(tmp_path):
    text = card_of(tmp_path)
    assert text.startswith("# Model card: MedSegDiff for organ\n")
    nameless = summary_of(evaluation_of(a={"dice": 0.5})) | {"class_names": ["foreground"]}
    other = write_card(tmp_path, nameless, MANIFEST, DATA, "test").read_text()
    assert other.startswith("# Model card: MedSegDiff\n")  # that name says nothing
    assert "Trained on `FOLDER` from `own`, with 0.25 of the groups for validation held out." in text
    assert "2 cases of `FOLDER` from `clinic`: the test part." in text
    assert "| dice | 0.7500 |" in text and "timesteps 3 steps" in text and "SHA-256 `abcdefabcdefabcd`..." in text


def test_several_checkpoints_are_named_each_with_what_it_was_trained_on(tmp_path):
    config = MANIFEST["config"] | {"calibration": {"temperature": 1.5, "cases": 4, "split": "val"}}
    further = {"checkpoint": "n.pt", "step": 9, "data": {"data_name": "FOLDER", "data_dir": "/data/own", "fold": "2/5"}}
    both = {"checkpoint": "/run/m.pt,/other/n.pt", "checkpoint_sha256": "ab" * 32 + "," + "cd" * 32}
    settings = MANIFEST["settings"] | {"temperature": 1.0}
    changes = both | {"config": config, "further": [further], "settings": settings}
    text = card_of(tmp_path, MANIFEST | changes)
    assert (
        "- Checkpoint `m.pt`, step 7, SHA-256 `abababababababab`...\n- Checkpoint `n.pt`, step 9, SHA-256 `cdcd" in text
    )
    assert (
        "`own`, with 0.25 of the groups for validation held out.\n- Trained on `FOLDER` from `own`, with fold 2/5"
        in text
    )
    assert "scaled with the temperature" not in text  # the fit of one is not applied to several


def test_several_checkpoints_are_named_with_their_runs():
    several = {"checkpoint": "/private/runs/fold1/best.pt,/private/runs/fold2/best.pt"}
    assert shown_checkpoint(several) == "fold1/best.pt,fold2/best.pt"
    assert shown_checkpoint({"checkpoint": "/private/fold1/best.pt"}) == "best.pt"


def test_intervals_need_five_patients(tmp_path):
    note = "No intervals: there are fewer than 5 patients."
    (tmp_path / "few").mkdir()
    assert note in card_of(tmp_path / "few") and " to 1.0000 |" not in (tmp_path / "few" / "model_card.md").read_text()
    six = summary_of(evaluation_of(**{name: {"dice": n / 10} for n, name in enumerate("abcdef", start=1)}))
    text = write_card(tmp_path, six, MANIFEST, DATA, "test").read_text()
    dice = six["ensemble"]["dice"]
    assert f"| dice | 0.3500 | {dice['low']:.4f} to {dice['high']:.4f} |" in text and note not in text


def test_it_leaves_out_a_folder_that_the_checkpoint_does_not_name(tmp_path):
    config = MANIFEST["config"] | {"data": {"data_name": "FOLDER", "data_dir": ""}}
    assert "- Trained on `FOLDER`.\n" in card_of(tmp_path, MANIFEST | {"config": config})


def test_it_names_no_private_folder_of_the_run(tmp_path):
    text = card_of(tmp_path)
    assert "lr 0.001" in text and "/private/run" not in text and "num_workers" not in text


def test_it_names_no_place_and_nothing_in_it_acts(tmp_path):
    leak = "warning: 2 of 2 cases have the names of training cases of /data/own: see /srv/b/c"
    evil = '<img src=x onerror="a()">[y](javascript:b())|`'
    config = MANIFEST["config"] | {"train": {"start": "/home/anna/x.pt", "mode": evil, "parts": ["see /srv/anna/y"]}}
    changes = {"checkpoint": "/home/anna/run/last.pt", "device": evil, "versions": {evil: evil}, "config": config}
    text = card_of(tmp_path, MANIFEST | changes | {"data": {"data_name": evil}}, leak=leak)
    assert "Checkpoint `last.pt`" in text and "start x.pt" in text and "training cases of own: see c" in text
    assert not any(place in text for place in ("/data", "/srv", "/home", "anna"))
    assert "<img" not in text and "](" not in text.replace("\\](", "") and text.count("&lt;img") == 5


def test_figures_that_are_undefined_are_left_out(tmp_path):
    text = card_of(tmp_path)
    assert "nan" not in text.lower() and "Dice of the coarse mask" not in text and "## Calibration" not in text


@pytest.mark.parametrize(("version", "papers"), [("v1", {"2211.00611"}), ("v2", {"2301.11798"}), ("unet", set())])
def test_it_cites_the_paper_of_its_variant(tmp_path, version, papers):
    config = MANIFEST["config"] | {"model": {"version": version}}
    text = card_of(tmp_path, MANIFEST | {"config": config})
    assert {paper for paper in ("2211.00611", "2301.11798") if paper in text} == papers


def test_masks_of_others_have_no_configuration(tmp_path):
    text = card_of(tmp_path, {})
    assert "## Configuration" not in text and "Trained on" not in text
    assert "segmentation for organ" in text and "2211.00611" in text and "2301.11798" in text


def test_limits_name_what_was_left_out_and_what_was_leaked(tmp_path):
    plain = card_of(tmp_path)
    assert "not a medical device" in plain and "Left out" not in plain and "validation cases" not in plain
    text = card_of(tmp_path, part="val", leak="warning: 2 cases were trained on", missing=1)
    assert "- 2 cases were trained on" in text and "Left out: 1 case without a prediction" in text
    assert "These are validation cases" in text
