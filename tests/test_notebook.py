"""The notebook docs/segmenter.ipynb: its cells run in order, and its stored pictures are those of its own code."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "segmenter.ipynb"
SETTINGS = "STEPS, SIDE, CHANNELS = "


def cells():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_cell_runs_with_fewer_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    shown = []
    space = {"display": shown.append}
    sources = ["".join(cell["source"]) for cell in cells()]
    assert sources[0].startswith(SETTINGS)
    for source in [f"{SETTINGS}6, 16, 4", "import guided_diffusion", *sources[1:]]:
        exec(source, space)
    assert len(shown) == 3 and all(isinstance(picture, Image.Image) for picture in shown)
    assert space["answer"].members.shape == (6, 16, 16) and space["mask"].dtype == bool
    assert np.array_equal(space["shared"](space["image"]).mask, space["mask"])
    assert "pixels of the readers: [" in capsys.readouterr().out


def test_its_stored_outputs_are_small_and_name_no_folder():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 60_000 and "/tmp/" not in text and "/home/" not in text
    pictures = [output for cell in cells() for output in cell["outputs"] if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
