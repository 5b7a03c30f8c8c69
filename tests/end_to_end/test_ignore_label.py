"""Pixels without truth: in no loss, in no figure, and never seen by the network."""

import json

import nibabel
import numpy as np
import pytest
import torch
from conftest import FAST, TINY, rows
from helpers import manifest_with, maps_of
from networks import Blobs, model_of
from PIL import Image

from guided_diffusion.data.augment import Augmentation
from guided_diffusion.data.crops import crop
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.resizing import View
from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.diffusion.schedule import noise_schedule
from guided_diffusion.evaluation.evaluate import EvaluationSettings, evaluate_cases
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training.parallel import StepLosses
from guided_diffusion.training.validation import Drawn

SIZE, CUT = 32, 24  # pixels along each side, and those with truth along the second
KNOWN = (torch.arange(16) < 11).expand(2, 1, 16, 16)

# ---- losses ------------------------------------------------------------------------------------------------------


class Recorder(torch.nn.Module):
    """A network that remembers what it sees and gives, with gradients."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen, self.given = model, None, []

    def encode(self, image, label=None):
        return self.model.encode(image, label)

    def forward(self, x_t, t, condition):
        self.seen = x_t
        output = self.model(x_t, t, condition)
        self.given = [part for part in output if part is not None]
        for part in self.given:
            part.retain_grad()
        return output


VARIANTS = {
    "v1, learned variance": ({"version": "v1", "learn_sigma": True}, {"objective": "eps"}),
    "v1, bound": ({"version": "v1", "learn_sigma": True}, {"objective": "eps", "use_kl": True}),
    "v1, v": ({"version": "v1"}, {"objective": "v"}),
    "v2, bce_dice": ({"version": "v2"}, {"objective": "x0", "mask_loss": "bce_dice", "logit_skip": "both"}),
    "v2, softmax": ({"version": "v2"}, {"objective": "x0", "mask_loss": "bce", "class_activation": "softmax"}),
    "unet": ({"version": "unet"}, {"objective": "x0", "mask_loss": "bce_dice"}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_pixels_without_truth_get_no_gradient_and_show_noise_alone(name):
    options, settings = VARIANTS[name]
    model = Recorder(model_of(image_channels=1, mask_channels=2, **options))
    losses = StepLosses(model, GaussianDiffusion(noise_schedule("cosine", 20), **settings))
    generator = torch.Generator().manual_seed(1)
    image, noise = torch.randn(2, 1, 16, 16, generator=generator), torch.randn(2, 2, 16, 16, generator=generator)
    mask = (torch.rand(2, 1, 16, 16, generator=generator) > 0.5).float() * torch.tensor([1.0, 0])[None, :, None, None]
    t, found = torch.tensor([0, 12]), []
    for hidden in (0.0, 1.0):  # whatever a mask holds where the truth is unknown
        changed = torch.where(KNOWN, mask, hidden * torch.tensor([1.0, 0])[None, :, None, None])
        model.zero_grad()
        loss = losses(image, None, changed, t, noise, changed, KNOWN, KNOWN, dice=True)["loss"]
        loss.sum().backward()
        found.append((loss.detach(), [part.grad for part in model.given]))
        assert torch.equal(model.seen[~KNOWN.expand_as(noise)], noise[~KNOWN.expand_as(noise)])
    (one, gradients), (other, others) = found
    assert torch.equal(one, other)
    for gradient, second in zip(gradients, others, strict=True):
        assert torch.equal(gradient, second) and not gradient[~KNOWN.expand_as(gradient)].any() and gradient.any()
    if name.startswith("v2"):  # the first stage
        changed, alone = torch.where(KNOWN, mask, 0), {"known": KNOWN, "condition_alone": True}
        one, other = (losses(image, None, m, t, noise, **alone)["loss"] for m in (mask, changed))
        assert torch.equal(one, other) and one.any()


def test_an_item_without_any_truth_has_no_loss():
    model = model_of(image_channels=1, version="v2")
    losses = StepLosses(model, GaussianDiffusion(noise_schedule("cosine", 20), objective="x0", mask_loss="bce"))
    nothing = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    mask = torch.ones(2, 1, 16, 16)
    assert not losses(mask, None, mask, torch.tensor([3, 4]), mask, known=nothing)["loss"].any()


# ---- items -------------------------------------------------------------------------------------------------------


class Partly(Blobs):
    """Blobs whose truth is known exactly where something is marked."""

    def read_labels(self, case):
        return np.where(self.read_mask(case)[:, 0], 1, 7)


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_the_known_pixels_move_with_the_mask(tmp_path, augment):
    dataset = Partly(tmp_path, 24, need_masks=True, ignore_label=(7,), view=View(keep_size=True))
    item = dataset[1]
    assert item["known"].shape == (1, 1, 24, 24) and torch.equal(item["known"], item["mask"])
    changed = Augmentation(augment, dataset, 0)(item, 5)
    assert torch.equal(changed["known"], (changed["mask"] > 0.9999).float())
    assert not torch.equal(changed["known"], item["known"])
    part = crop(item, 16, 0, 3)
    assert part["known"].shape == (1, 1, 16, 16) and torch.equal(part["known"], part["mask"])


# ---- files -------------------------------------------------------------------------------------------------------


def labels_of(number):
    """Labels 0 and 1, with 255 from column `CUT` on."""
    labels = (np.hypot(*(np.indices((SIZE, SIZE)) - 14)) < 8 + number).astype(np.uint8)
    labels[:, CUT:] = 255
    return labels


def save(folder, labels, value=255, kind="grey", count=3, raters=("",)):
    """A FOLDER data set whose masks have `value` for 255, as grey or palette pictures. Returns the folder."""
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 99, (SIZE, SIZE)).astype(np.uint8)
        image += 100 * (labels_of(number) == 1).astype(np.uint8)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, : labels(number).shape[1]]).save(folder / "images" / f"c{number}.png")
        for shift, rater in enumerate(raters):
            mask = np.roll(labels(number), shift, axis=0)
            mask = Image.fromarray(np.where(mask == 255, value, mask).astype(np.uint8))
            if kind == "palette":  # as in Pascal VOC
                mask.putpalette([0, 0, 0, 128, 0, 0] + [0] * 756 + [224, 224, 192][: 768 - 762 + 3])
            (folder / "masks" / rater).mkdir(parents=True, exist_ok=True)
            mask.save(folder / "masks" / rater / f"c{number}.png")
    return folder


@pytest.mark.parametrize("kind", ["grey", "palette", "nifti", "raters"])
def test_readers_leave_out_exactly_that_value(tmp_path, kind):
    if kind == "nifti":
        for part, values in (("images", labels_of(0) * 1.5 + 3), ("masks", labels_of(0))):
            (tmp_path / part).mkdir()
            volume = np.stack([values] * 2, axis=-1).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / part / "c0.nii.gz")
    else:
        save(tmp_path, labels_of, kind=kind, raters=("ann", "ben") if kind == "raters" else ("",))
    dataset = build_dataset("FOLDER", tmp_path, SIZE, need_masks=True, ignore_label=(255,))
    case = dataset.cases[0]
    unknown, mask = dataset.load_ignored(case), dataset.load_mask(case)
    assert len(mask) == len(unknown) == (2 if kind == "raters" else 1)
    read = dataset.load_labels(case)
    assert np.array_equal(unknown, read == 255) and np.array_equal(mask[:, 0], read == 1) and unknown.any()
    item = dataset[0]
    assert torch.equal(item["known"][:, 0] == 0, torch.from_numpy(unknown))
    assert set(item["mask"].unique().tolist()) == {0, 1}


def test_what_does_not_go_with_it(tmp_path, isic):
    save(tmp_path, labels_of)
    with pytest.raises(UserError, match="--ignore_label 255: 255 is also a value of the class b; name it in one"):
        build_dataset("FOLDER", tmp_path, SIZE, classes="a=1,b=255", ignore_label=(255,))
    with pytest.raises(UserError, match="--ignore_label 255: ISIC has no label maps"):
        build_dataset("ISIC", isic, SIZE, split="train", ignore_label=(255,))
    assert str(build_dataset("FOLDER", tmp_path, 8, classes="auto", ignore_label=(255,)).classes) == "class_1=1"
    with pytest.raises(UserError, match="255 beside small values is void .* --ignore_label 255 leaves it out"):
        dataset = build_dataset("FOLDER", tmp_path, SIZE)
        dataset.load_mask(dataset.cases[0])


# ---- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raters", [("",), ("ann", "ben")])
def test_figures_are_those_of_the_image_without_these_pixels(tmp_path, raters):
    whole = save(tmp_path / "whole", labels_of, raters=raters)
    part = save(tmp_path / "part", lambda number: labels_of(number)[:, :CUT], raters=raters)
    found = {}
    for name, folder, ignored in (("whole", whole, (255,)), ("part", part, ())):
        results = ResultsFolder(tmp_path / f"{name}_out", manifest_with(), save_samples=True)
        for number in range(3):
            maps = maps_of((SIZE, SIZE), seed=number)
            maps = maps if name == "whole" else maps.map_arrays(lambda values: values[..., :CUT])
            results.write_image(f"c{number}", maps, np.zeros((1, *maps.mask.shape[1:]), np.float32))
        settings = EvaluationSettings(sizes="staple", levels=True, topology=True)
        dataset = build_dataset("FOLDER", folder, 1, ignore_label=ignored)
        found[name] = evaluate_cases(tmp_path / f"{name}_out", dataset, settings=settings)
    for ours, theirs in zip(found["whole"].rows, found["part"].rows, strict=True):
        assert ours.keys() == theirs.keys()
        differ = {key for key in ours if ours[key] != pytest.approx(theirs[key], nan_ok=True)}
        assert not differ
    assert ours["log_loss"] > 0 and 0 < ours["dice"] < 1 and 0 < ours["specificity"] < 1
    assert found["whole"].levels.log_loss() == pytest.approx(found["part"].levels.log_loss())
    for name, sizes in found["whole"].sizes.items():
        assert np.allclose(sizes.dice, found["part"].sizes[name].dice, equal_nan=True)


def test_validation_scores_the_known_pixels_alone():
    generator = np.random.default_rng(0)
    soft, raters = generator.random((4, 2, 8, 8)).astype(np.float32), generator.random((2, 2, 8, 8)) > 0.5
    drawn = Drawn(soft, soft > 0.5, soft.mean(axis=0) > 0.5, 0.5, soft.std(axis=0), soft[0], soft[0] > 0.5)
    known = np.broadcast_to(np.arange(8) < 5, (8, 8))
    parts = [one if np.ndim(one) == 0 else one[..., :5] for one in list(vars(drawn).values())[:7]]
    ours, theirs = Drawn(**{**vars(drawn), "known": known}).figures(raters), Drawn(*parts).figures(raters[..., :5])
    whole = drawn.figures(raters)
    for figures in (ours, theirs, whole):
        figures |= {f"dice {k}": value for k, value in enumerate(figures.pop("class_dice"))}
    assert ours == pytest.approx(theirs, nan_ok=True) and ours != pytest.approx(whole, nan_ok=True)


# ---- commands ----------------------------------------------------------------------------------------------------


def test_from_training_to_figures(tmp_path, script, capsys):
    """The network never sees the value, and evaluation takes it from the results folder."""
    weights = {}
    for value in (255, 254):
        data, out = save(tmp_path / f"data{value}", labels_of, value, count=4), tmp_path / f"run{value}"
        line = ["--data_name FOLDER --data_dir", data, "--out_dir", out, TINY, f"--max_steps 2 --ignore_label {value}"]
        script("segmentation_train", [*line, "--val_fraction 0.5 --sample_interval 2 --val_cases 1 --augment strong"])
        weights[value] = torch.load(out / "model000002.pt", weights_only=True)
    assert weights[254]["config"]["data"]["ignore_label"] == "254"
    for name, tensor in weights[255]["model"].items():
        assert torch.equal(tensor, weights[254]["model"][name])
    results = tmp_path / "results"
    checkpoint = tmp_path / "run255" / "model000002.pt"
    script(
        "segmentation_sample",
        ["--model_path", checkpoint, "--data_dir", tmp_path / "data255", "--out_dir", results, FAST],
    )
    assert json.loads((results / "manifest.json").read_text())["data"]["ignore_label"] == "255"
    script("segmentation_eval", ["--num_workers 0 --pred_dir", results])
    assert len(rows(results)) == 2 and float(rows(results)[0]["log_loss"]) > 0
    capsys.readouterr()
    line = ["--data_dir", tmp_path / "data255", "--out_dir", tmp_path / "checked", "--ignore_label 255 --num_workers 0"]
    script("check_data", line)
    assert "pixels without truth" in (shown := capsys.readouterr().out) and "25 % (25 to 25)" in shown
    assert "no pixel has this value" not in shown
    script("check_data", ["--data_dir", tmp_path / "data255", "--out_dir", tmp_path / "checked", "--ignore_label 77"])
    assert "--ignore_label 77: no pixel has this value; leave it out" in capsys.readouterr().out
