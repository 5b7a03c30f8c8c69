"""The whole path learns: a tiny model, trained on four phantoms, draws their masks from noise."""

import json

import numpy as np
import pytest
from conftest import TINY
from PIL import Image


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_four_phantoms_are_learned_by_heart(script, pictures, tmp_path, version):
    run, results = tmp_path / "run", tmp_path / "results"
    script(
        "segmentation_train",
        [
            "--data_name FOLDER --data_dir", pictures, "--out_dir", run, TINY, f"--version {version}",
            # The attention of V2's bottleneck compares all its positions: a level more has a sixteenth of the pairs.
            "--channel_mult 1,2,2" if version == "v2" else "",
            "--num_channels 16 --batch_size 4 --max_steps 100 --lr 2e-3 --ema_rate 0.9 --log_interval 100",
        ],
    )  # fmt: skip
    flags = "--num_ensemble 5 --diffusion_steps 10 --dpm_solver True --batch_size 4 --num_workers 0 --precision fp32"
    data = ["--data_dir", pictures, "--out_dir", results]
    script("segmentation_sample", ["--model_path", run / "model000100.pt", *data, flags, "--save_samples True"])
    summary = json.loads((results / "summary.json").read_text())
    assert summary["ensemble"]["dice"]["n"] == 4
    assert summary["ensemble"]["dice"]["mean"] >= 0.9  # about 0.98
    assert summary["sample"]["mean"] >= 0.85
    assert summary["coarse"]["mean"] >= 0.85
    # The mask follows the image: it fits its own case, not the others.
    masks = [np.asarray(Image.open(results / "masks" / f"case{n}.png")) > 0 for n in range(4)]
    truths = [np.asarray(Image.open(pictures / "masks" / f"case{n}.png")) > 0 for n in range(4)]
    iou = np.array([[(m & t).sum() / (m | t).sum() for t in truths] for m in masks])
    assert (iou.argmax(axis=1) == np.arange(4)).all()
