"""The command that writes a folder to share."""

import dataclasses
import json
import logging
import zipfile

import pytest
import torch
import yaml
from conftest import FAST
from networks import model_of, options_of

from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.cli import export
from guided_diffusion.cli.verbs import export_main as main
from guided_diffusion.runtime.errors import UserError


@pytest.fixture(scope="module")
def plain(trained, tmp_path_factory):
    """The file of a checkpoint of a plain U-Net for 3 channels, whose probabilities have a temperature."""
    model, start = model_of(3, 1, version="unet", image_size=8, channel_mult="1"), load_checkpoint(trained)
    options = dataclasses.asdict(options_of(version="unet", image_size=8, channel_mult="1"))
    config = start.config | {"model": options, "calibration": {"temperature": 2.0, "cases": 3, "split": "val"}}
    weights = {
        "model": model.state_dict(),
        "ema": {"0.99": {name: value.detach() for name, value in model.named_parameters()}},
    }
    path = tmp_path_factory.mktemp("plain") / "last.pt"
    save_checkpoint(dataclasses.replace(start, config=config, optimizer={}, **weights), path)
    return path


def contents(path):
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(map(archive.read, archive.namelist()))


def test_both_kinds_of_graphs_answer_as_the_network_and_name_no_folder(plain, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    logging.disable(logging.WARNING)  # torch's log of its tracing, which pytest would keep, takes most of the time
    out = tmp_path / "shared"
    try:
        assert main([str(plain.parent), "--out", str(out), "--pt2", "--onnx"]) == 0
    finally:
        logging.disable(logging.NOTSET)
    names = ["README.md", "condition.onnx", "condition.pt2", "config.json", "model.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names
    here = str(export.__file__).removesuffix("cli/export.py").encode()
    for name in names:
        assert not any(place in contents(out / name) for place in (here, str(plain.parent).encode(), b"case1"))
    image = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = (load_checkpoint(plain).build()[0].eval().encode(image).logits / 2).sigmoid()
    (found,) = torch.export.load(out / "condition.pt2").module()(image)
    session = onnxruntime.InferenceSession(out / "condition.onnx")
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(torch.from_numpy(session.run(None, {"image": image.numpy()})[0]), expected, atol=1e-5)
    graphs = json.loads((out / "config.json").read_text())["graphs"]
    assert graphs["condition"] == {"inputs": ["image"], "outputs": ["probability"]} and graphs["image_size"] == 8
    assert "image -> probability" in (out / "README.md").read_text()


def test_the_card_has_what_hubs_read_and_the_figures_of_the_results(trained, pictures, sample, tmp_path, capsys):
    results = sample(trained, pictures, FAST)
    capsys.readouterr()
    main([str(trained), f"--out_dir={tmp_path / 'shared'}", "--pred_dir", str(results)])
    out, card = capsys.readouterr().out, (tmp_path / "shared" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "image-segmentation" and front["library_name"] == "guided_diffusion"
    assert "medsegdiff" in front["tags"] and "license" not in front and "has no license yet" in out
    assert "| dice |" in card.lower() and "num_ensemble 2" in card and "Classes: foreground" in card
    assert str(pictures) not in card and pictures.name not in card and "case1" not in card
    again = sample(tmp_path / "shared", pictures, FAST, out="again")
    for path in (results / "masks").iterdir():
        assert path.read_bytes() == (again / "masks" / path.name).read_bytes()


def test_figures_of_other_results_are_refused(trained, plain, pictures, sample, tmp_path):
    results = sample(trained, pictures, FAST)
    with pytest.raises(UserError, match="was sampled with another checkpoint, so its figures are not this model's"):
        main([str(plain), "--out", str(tmp_path / "shared"), "--pred_dir", str(results)])
    with pytest.raises(UserError, match="was sampled with other weights of this checkpoint"):
        main([str(trained), "--out", str(tmp_path / "shared"), "--weights", "model", "--pred_dir", str(results)])
    (results / "summary.json").unlink()
    with pytest.raises(UserError, match="has no summary.json; evaluate the results first"):
        main([str(trained), "--out", str(tmp_path / "shared"), "--pred_dir", str(results)])
    assert not (tmp_path / "shared").exists()


def test_the_folder_is_written_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    def broken(*_):
        raise UserError("no card")

    monkeypatch.setattr(export, "hub_card", broken)
    with pytest.raises(UserError, match="no card"):
        main([str(trained), "--out", str(tmp_path / "shared")])
    assert not list(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already, and is no empty folder"):
        main([str(trained), "--out", str(tmp_path / "full")])


def test_what_is_lacking_is_told(trained, tmp_path):
    with pytest.raises(UserError, match="--out_dir: is needed"):
        main([str(trained)])
    with pytest.raises(UserError, match="--model_path: is needed"):
        main(["--out", "x"])
    with pytest.raises(UserError, match="--weights 0.5: the checkpoint has model, ema, 0.9999"):
        main([str(trained), "--out", str(tmp_path / "shared"), "--weights", "0.5"])
