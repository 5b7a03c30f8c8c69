"""A new run that begins with another model's weights: what is taken, what is adapted, and what is printed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from networks import model_of

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.exported import write_exported
from guided_diffusion.training.initial import fit_weights, network_values


def fitted(old, new, counts, own_counts, keep_labels=True):
    """The `Fit` of one network's weights to another's."""
    patches = {"image": new.shape.patch**2, "masks": getattr(new, "block", 1) ** 2}
    return fit_weights(old.state_dict(), new.state_dict(), counts, own_counts, patches, keep_labels)


@pytest.mark.parametrize("version", ["v1", "v2", "unet"])
@pytest.mark.parametrize("patch", [1, 2])
def test_other_channels_see_the_mean_so_that_grey_pictures_look_the_same(version, patch):
    """A network for three channels gives for one grey channel what it gave for three equal ones."""
    options = {"version": version, "patch_size": patch}
    old, new = model_of(3, 1, **options), model_of(1, 1, **options)
    fit = fitted(old, new, {"image": 3, "masks": 1}, {"image": 1, "masks": 1})
    assert not fit.left and not fit.unused
    assert fit.adapted == ["the mean of its 3 channels stands for each of 1"]
    new.load_state_dict(fit.taken)
    grey, x_t, t = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16), torch.tensor([3, 900])
    with torch.no_grad():
        answers = [m(x_t, t, m.encode(image)) for m, image in ((old, grey.expand(-1, 3, -1, -1)), (new, grey))]
    assert torch.allclose(answers[0].prediction, answers[1].prediction, atol=1e-5)


def test_the_head_of_other_classes_begins_anew_even_where_the_sums_agree():
    """1 class and 3 channels are as many inputs as 3 classes and 1 channel, and mean other things."""
    old, new = model_of(3, 1, version="v1"), model_of(1, 3, version="v1")
    fit = fitted(old, new, {"image": 3, "masks": 1}, {"image": 1, "masks": 3})
    heads = {"head.conv.weight", "head.conv.bias", "coarse_decoder.head.conv.weight", "coarse_decoder.head.conv.bias"}
    assert set(fit.left) == heads and len(fit.adapted) == 2
    stem = "mask_encoder.0.entry.conv.weight"
    before, after = old.state_dict()[stem], fit.taken[stem]
    assert torch.allclose(after[:, :3], before[:, :1].expand(-1, 3, -1, -1) / 3)
    assert torch.allclose(after[:, 3:], before[:, 1:].sum(dim=1, keepdim=True))


def test_other_labels_begin_anew():
    old, new = (model_of(3, 1, 2, version="v1", class_cond=True) for _ in range(2))
    same = {"image": 3, "masks": 1}
    assert not fitted(old, new, same, same).left
    assert fitted(old, new, same, same, keep_labels=False).left == ["label_embedding.weight"]


def test_a_run_begins_with_the_weights_and_says_what_it_left_out(script, pictures, trained, tmp_path, capsys):
    """The network's flags come from the model; nothing of where it lay is in the new checkpoint."""
    write_exported(tmp_path, load_checkpoint(trained), "ema")
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", "--init_from", tmp_path]
    flags = "--max_steps 1 --lr 1e-12 --num_workers 0 --batch_size 2 --precision fp32 --sample_interval 0"
    script("segmentation_train", [*line, flags, "--channel_mult 1,3"])
    out = capsys.readouterr().out
    shown = next(row for row in out.splitlines() if row.startswith(f"--init_from {tmp_path}: "))
    assert "begin with its weights (step 2, averaged at 0.9999); at random begin " in shown and " more" in shown
    start, last = load_checkpoint(trained), load_checkpoint(tmp_path / "run" / "last.pt", to_train=True)
    expected = {**start.config["model"], "channel_mult": "1,3"}
    assert last.config["model"] == expected and last.config["train"]["recipe"] == "none"
    name = "mask_encoder.0.entry.conv.weight"
    assert torch.allclose(last.model[name], start.weights("ema")[1][name], atol=1e-6)
    assert str(tmp_path) not in str(last.config) and "init_from" not in last.config["train"]
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["init_from"] == str(tmp_path)


def test_a_resumed_run_ignores_it_says_so_and_keeps_the_record(script, pictures, trained, tmp_path, capsys):
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY, "--init_from", trained]
    script("segmentation_train", [*line, "--max_steps 1 --resume_checkpoint auto"])
    assert f"--init_from {trained}: " in capsys.readouterr().out
    script("segmentation_train", [*line, "--max_steps 2 --resume_checkpoint auto"])
    out = capsys.readouterr().out
    assert "--init_from has no effect: the run goes on from its own step 1" in out and "begin with" not in out
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["init_from"] == str(trained)


def test_weights_of_which_none_fits_are_refused(refusal, pictures, trained, tmp_path):
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY, "--init_from", trained]
    shown = refusal("segmentation_train", [*line, "--version unet"])
    assert f"--init_from {trained}: none of its weights fits the network; its own is a v1" in shown


def test_what_is_no_model_is_refused_with_its_flag(refusal, pictures, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"x")
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run", "--init_from", tmp_path / "x.pt"]
    assert refusal("segmentation_train", line).startswith(f"error: --init_from {tmp_path / 'x.pt'}: is no checkpoint")


def test_a_network_that_saw_crops_sees_crops_again():
    config = {"model": {"preset": "S", "image_size": 64}, "diffusion": {"sigma_small": True}, "train": {"crop": True}}
    assert network_values(SimpleNamespace(config=config)) == {"image_size": 64, "sigma_small": True, "crop": True}


def test_a_preset_or_objective_of_the_user_wins(tmp_path):
    from guided_diffusion.config.command_line import TRAINING, options_over, parse

    values = {"version": "v2", "num_channels": 16, "image_size": 64, "objective": "x0", "channel_mult": "1,2"}
    options, given = parse("", TRAINING, ["--preset", "S", "--predict_xstart", "False"])
    _, train, model, diffusion, _ = options_over(options, given, values)
    assert (model.num_channels, model.image_size, diffusion.objective, train.recipe) == (128, 256, "eps", "none")
    options, given = parse("", TRAINING, ["--lr", "0.1"])
    _, train, model, diffusion, _ = options_over(options, given, values | {"version": "v1"})
    assert (train.lr, train.recipe, train.condition_steps, model.num_channels) == (0.1, "none", 0, 16)
    assert np.isclose(diffusion.input_scale, 0.1)
