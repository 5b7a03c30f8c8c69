"""Several checkpoints as one ensemble: shares, noise, the mean of their answers, and what they must agree in."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FAST, TINY, strict_json
from PIL import Image

from guided_diffusion import Segmenter
from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.data.classes import BINARY, Classes
from guided_diffusion.inference.answer import fuse_cases
from guided_diffusion.inference.ensemble import entropy
from guided_diffusion.inference.members import Members
from guided_diffusion.inference.predictions import Predictions
from guided_diffusion.inference.several import check_agreement, dealt
from guided_diffusion.runtime.errors import UserError


def other_weights(path, copy):
    """A copy of a checkpoint whose weights are moved a little, as another seed would have it; returns its path."""
    checkpoint, generator = load_checkpoint(path), torch.Generator().manual_seed(7)
    for state in (checkpoint.model, *checkpoint.ema.values()):
        for name, value in state.items():
            state[name] = value + 0.05 * torch.randn(value.shape, generator=generator)
    save_checkpoint(checkpoint, copy)
    return copy


@pytest.fixture(scope="module")
def seeds(trained, tmp_path_factory):
    """Two checkpoints; beside the first lies last.pt, the same file."""
    return [trained, other_weights(trained, tmp_path_factory.mktemp("seed") / "other.pt")]


@pytest.fixture(scope="module")
def plain_nets(script, pictures, tmp_path_factory):
    """Two plain U-Nets, by their runs' folders."""
    runs = [tmp_path_factory.mktemp(f"unet{seed}") for seed in (1, 2)]
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", runs[0], TINY.replace("v1", "unet")]
    script("segmentation_train", [*line, "--max_steps 1 --lr 1e-2"])
    other_weights(runs[0] / "last.pt", runs[1] / "last.pt")
    return runs


def levels(folder, what):
    """The pictures of a kind of map, {case: float array in 0..1}."""
    top = {"probability": 65535, "entropy": 65535, "mutual_information": 65535, "data_entropy": 65535}[what]
    found = {}
    for path in sorted((folder / what).iterdir()):
        with Image.open(path) as picture:
            found[path.stem] = np.asarray(picture).astype(np.float64) / top
    return found


def test_members_are_dealt_evenly():
    assert dealt(7, 3) == (3, 2, 2) and dealt(3, 3) == (1, 1, 1) and dealt(0, 4) == (1, 1, 1, 1)
    with pytest.raises(
        UserError, match="--num_ensemble 2: --model_path names 3 checkpoints, and each draws one member"
    ):
        dealt(2, 3)


def test_a_checkpoint_and_its_copy_give_what_it_gives_alone(sample, seeds, pictures, tmp_path):
    """So a second checkpoint's members have noise of their own: members 0 and 1 are drawn by one, 2 by the other."""
    copy = tmp_path / "copy.pt"
    shutil.copy(seeds[0], copy)
    flags = FAST.replace("--num_ensemble 2", "--num_ensemble 3") + " --save_samples True --fuse mean --num_samples 1"
    alone = sample(seeds[0], pictures, flags, out="alone")
    both = sample(f"{seeds[0]},{copy}", pictures, flags, out="both")
    for path in sorted((alone / "samples").iterdir()):
        assert path.read_bytes() == (both / "samples" / path.name).read_bytes()
    manifest = strict_json(both / "manifest.json")
    assert manifest["settings"]["shares"] == [2, 1] and manifest["settings"]["num_ensemble"] == 3
    assert manifest["checkpoint"] == f"{seeds[0]},{copy}"
    hashes = manifest["checkpoint_sha256"].split(",")
    assert len(hashes) == 2 and hashes[0] == hashes[1] == strict_json(alone / "manifest.json")["checkpoint_sha256"]
    assert Predictions(both).num_ensemble == 3


def test_the_mean_of_the_checkpoints_is_the_answer_and_uncertainty_is_told_apart(
    sample, seeds, pictures, refusal, capsys, tmp_path
):
    flags = f"{FAST} --uncertainty_maps True --num_samples 1"
    both = sample(f"{seeds[0]},{seeds[1]}", pictures, flags, out="both")
    assert "2 checkpoints, which give 1 + 1 members" in capsys.readouterr().out
    one = flags.replace("--num_ensemble 2", "--num_ensemble 1")
    first = levels(sample(seeds[0], pictures, one, out="first"), "probability")
    segmenter = Segmenter.load(list(seeds), members=2, steps=2, sampler="dpm_solver", precision="fp32", device="cpu")
    total, data, model = (levels(both, what) for what in ("entropy", "data_entropy", "mutual_information"))
    for name, probability in levels(both, "probability").items():
        with Image.open(pictures / "images" / f"{name}.png") as picture:
            answer = segmenter(np.asarray(picture), name)
        assert np.allclose(answer.probability, probability, atol=1e-4)
        other = 2 * probability - first[name]  # the second checkpoint's own
        assert np.allclose(total[name], entropy(probability), atol=1e-3)
        clipped = np.clip(other, 0, 1)
        assert np.allclose(data[name], (entropy(first[name]) + entropy(clipped)) / 2, atol=5e-3)
        assert np.allclose(total[name], data[name] + model[name], atol=1e-4) and model[name].max() > 1e-4
    pair = ["--model_path", f"{seeds[0]},{seeds[1]}", "--data_dir", pictures, "--out_dir", tmp_path / "no", FAST]
    assert "and each draws one member at least" in refusal("segmentation_sample", [*pair, "--num_ensemble 1"])
    assert "--debug True: shows how one checkpoint draws" in refusal("segmentation_sample", [*pair, "--debug True"])
    twice = ["--model_path", f"{seeds[0]},{seeds[0].parent / 'last.pt'}", *pair[2:]]  # a link to the same file
    assert "are one file, which would count twice" in refusal("segmentation_sample", twice)


def test_plain_networks_are_a_deep_ensemble_by_their_runs_folders(sample, plain_nets, pictures):
    flags = "--num_workers 0 --precision fp32 --save_samples True --num_samples 1"
    both = sample(",".join(map(str, plain_nets)), pictures, flags, out="both")
    own = [levels(sample(one, pictures, flags, out=one.name), "probability") for one in plain_nets]
    for name, probability in levels(both, "probability").items():
        assert np.allclose(probability, (own[0][name] + own[1][name]) / 2, atol=2e-5)
        with Image.open(both / "masks" / f"{name}.png") as picture:
            assert np.array_equal(np.asarray(picture) > 0, probability > 0.5)
    assert np.abs(own[0]["case0"] - own[1]["case0"]).max() > 1e-3
    assert len(list((both / "samples").glob("case0_*.png"))) == 2
    manifest = strict_json(both / "manifest.json")
    assert manifest["settings"]["shares"] == [1, 1] and len(manifest["further"]) == 1
    assert manifest["further"][0]["checkpoint"].endswith("last.pt")


def test_unequal_shares_have_equal_weights():
    soft = torch.tensor([0.2, 0.4, 0.9]).reshape(3, 1, 1, 1, 1).expand(3, 1, 1, 4, 4)
    (maps,) = fuse_cases(Members(soft, None), [(4, 4)], "mean", BINARY, shares=(2, 1), pixel_maps=True)
    assert np.allclose(maps.probability, 0.6) and maps.mask.all()  # not 0.5, the mean of all members
    assert np.allclose(maps.pixel_maps["data_entropy"], (entropy(np.array(0.3)) + entropy(np.array(0.9))) / 2)
    assert np.allclose(maps.pixel_maps["entropy"], entropy(np.array(0.6)))
    assert np.allclose(maps.uncertainty, np.std([0.2, 0.4, 0.9]))
    (alone,) = fuse_cases(Members(soft, None), [(4, 4)], "mean", BINARY, pixel_maps=True)
    assert np.allclose(alone.probability, 0.5) and "data_entropy" not in alone.pixel_maps


def trained_on(**changes):
    """What `check_agreement` reads of a checkpoint."""
    classes = changes.pop("classes", Classes(("polyp",)))
    config = {
        "data": {"data_name": changes.pop("data_name", "FOLDER"), "ct_window": ""},
        "model": {
            "version": changes.pop("version", "v2"),
            "image_size": changes.pop("image_size", 32),
            "class_cond": False,
        },
        "loader": changes.pop("loader", {"is_picture": True}),
    }
    return SimpleNamespace(
        config=config, classes=classes, image_channels=changes.pop("channels", 3), label_names=[], **changes
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"version": "unet"}, "a is a diffusion model, b is a plain U-Net"),
        ({"channels": 1}, "a has image channels: 3, b has image channels: 1"),
        ({"classes": Classes(("liver",))}, "a has the classes .*, b has the classes "),
        ({"data_name": "ISIC"}, "a was trained with --data_name FOLDER, b was trained with --data_name ISIC"),
        ({"image_size": 64}, "--image_size 32, b was trained with --image_size 64"),
        ({"loader": {"is_nifti": True, "ct_window": (-160, 240)}}, "--ct_window none, b was trained with --ct_window"),
        ({"loader": {"is_picture": True, "mean": 3}}, "normalisation is_picture True, b has the normalisation is_pict"),
    ],
)
def test_what_checkpoints_must_agree_in(changes, line):
    check_agreement([trained_on(), trained_on(data_name="folder")], ["a", "b"])
    with pytest.raises(UserError, match=f"--model_path: .*{line}.*; name checkpoints of one kind"):
        check_agreement([trained_on(), trained_on(**changes)], ["a", "b"])
