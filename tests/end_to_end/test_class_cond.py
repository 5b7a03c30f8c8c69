"""Class labels (--class_cond): what depends on them in V2, which part learns them when, and who needs them."""

import shutil

import pytest
import torch
from conftest import LOADER, TINY
from networks import inputs, model_of

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.diffusion.schedule import noise_schedule
from guided_diffusion.inference.members import answer_in_one_pass, draw_members
from guided_diffusion.inference.plan import NO_STEPS, SamplingPlan
from guided_diffusion.training.stages import mark_learning

DIFFUSION = GaussianDiffusion(noise_schedule("cosine", 50, 0.3), objective="x0", mask_loss="bce_dice")
LEVEL_1 = {"diffusion_level": 1, "concat_features": True}  # as the default recipe has it


def labelled(**values):
    return model_of(num_labels=3, class_cond=True, version="v2", **values)


def drawn(model, label):
    """The answer in one pass, which a run in stages gives by default, and members."""
    image, labels = inputs(n=2)[0], torch.tensor([label] * 2)
    answer = answer_in_one_pass(model, DIFFUSION, NO_STEPS, image, label=labels)
    plan = SamplingPlan("ddim", (40, 20, 0))
    return answer, draw_members(model, DIFFUSION, plan, image, ["a", "b"], members=3, label=labels)


@pytest.mark.parametrize("values", [{}, LEVEL_1], ids=["whole", "level 1"])
def test_the_answer_and_the_members_depend_on_the_label(values):
    model = labelled(**values)
    (one, members), (other, others) = drawn(model, 0), drawn(model, 2)
    assert (one.soft - other.soft).abs().mean() > 1e-3 and (members.soft - others.soft).abs().mean() > 1e-3
    torch.testing.assert_close(one.soft[0], members.coarse.mean(dim=0), atol=1e-5, rtol=0)


def test_rows_have_their_own_labels():
    model, image = labelled(), inputs(n=1)[0]
    together = model.encode(image.repeat(2, 1, 1, 1), torch.tensor([0, 2]))
    for row, label in enumerate((0, 2)):
        alone = model.encode(image, torch.tensor([label]))
        torch.testing.assert_close(together.coarse[row], alone.coarse[0], atol=1e-5, rtol=0)


def test_without_labels_no_layer_is_for_them():
    names = model_of(num_labels=3, version="v2").state_dict()
    assert not [name for name in names if "label" in name or name.startswith("condition_model.") and "embed" in name]


def test_in_the_second_stage_the_condition_models_labels_stay_and_the_diffusions_learn():
    model, (image, x_t, t) = labelled().train(), inputs()
    mark_learning(model, first=False, second=True, has_coarse_loss=True)
    output = model(x_t, t, model.encode(image, torch.tensor([0, 2])))
    (output.prediction + 2 * output.coarse).square().sum().backward()
    assert model.condition_model.label_embedding.weight.grad is None
    assert model.label_embedding.weight.grad[[0, 2]].norm() > 0
    learned = {name for name, p in model.condition_model.named_parameters() if p.grad is not None}
    assert learned == {name for name, _ in model.condition_model.named_parameters() if name.startswith("head.")}


def test_a_new_run_tells_both(script, isic, tmp_path):
    data = f"--data_name ISIC --data_dir {isic / 'Train'} --out_dir {tmp_path / 'run'}"
    script("segmentation_train", f"{data} {TINY} --version v2 --class_cond True --max_steps 1")
    assert "condition_model.label_embedding.weight" in load_checkpoint(tmp_path / "run" / "model000001.pt").model


# ---- validation ------------------------------------------------------------------------------------------------------


def test_validation_cases_need_labels_where_the_network_is_told_them_alone(script, refusal, isic, tmp_path):
    """Or the run would end at the first validation, before its first checkpoint."""
    plain = tmp_path / "plain"
    shutil.copytree(isic / "Test", plain, ignore=shutil.ignore_patterns("*.csv"))
    line = ["--data_name ISIC --data_dir", isic / "Train", "--val_dir", plain, "--out_dir", tmp_path / "run", TINY]
    line += ["--version unet --sample_interval 1 --max_steps 1"]
    told = refusal("segmentation_train", [*line, "--class_cond True"])
    assert "has no class label, which --class_cond True needs; set it False or name other validation cases" in told
    assert script("segmentation_train", line) == 0


DIVIDED = (
    LOADER.replace("image_channels", "finds_validation = True\n    image_channels")
    .replace("*/photo.png", "{self.split}*/photo.png")
    .replace('glob("', 'glob(f"')
    .replace("cases = []", "cases, val = [], self.split == 'val'\n        self.label_names = NAMES if val else 'ab'")
    .replace("else ())", "else (), label=LABEL if val else 1)")
)


@pytest.mark.parametrize(
    ("label", "names", "words"),
    [("None", "ab", "has no class label"), ("0", "ba", "has the labels b, a, the training cases have a, b; use data")],
)
def test_a_loaders_own_validation_part_is_looked_at_too(refusal, pictures, tmp_path, label, names, words):
    (tmp_path / "own.py").write_text(DIVIDED.replace("NAMES", repr(names)).replace("LABEL", label))
    for index, part in enumerate(("train", "train", "val")):
        (tmp_path / "data" / f"{part}{index}").mkdir(parents=True)
        for source, name in (("images", "photo"), ("masks", "truth")):
            shutil.copy(pictures / source / f"case{index}.png", tmp_path / "data" / f"{part}{index}" / f"{name}.png")
    line = [f"--data_name {tmp_path / 'own.py'}:Polyps --data_dir", tmp_path / "data", "--out_dir", tmp_path / "run"]
    flags = f"{TINY} --version unet --sample_interval 1 --max_steps 1 --class_cond True"
    assert words in refusal("segmentation_train", [*line, flags])
