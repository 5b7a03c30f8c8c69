"""Settings: flags over recipe over checkpoint over defaults, settled once."""

import copy
import dataclasses

import pytest
from helpers import SAMPLE, TRAIN

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.options import ModelOptions
from guided_diffusion.config.settings import DataFacts, Saved, changes, settle, unless_contradicted
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.runtime.errors import UserError


def test_saved_options_win_unless_contradicted():
    saved = dataclasses.asdict(ModelOptions(num_channels=16)) | {"of_another_version": 1}
    asked = ModelOptions(num_channels=16, num_heads=4)
    assert unless_contradicted(asked, {"num_channels"}, saved, "m.pt") == ModelOptions(num_channels=16)
    with pytest.raises(UserError, match="--num_heads 4 contradicts the checkpoint m.pt, .* num_heads 1"):
        unless_contradicted(asked, {"num_heads"}, saved, "m.pt")


# ---- settle --------------------------------------------------------------------------------------------------------

FACTS = DataFacts("FOLDER", "any", "", "", 1, False)


def settled(line, saved=None, facts=None, groups=TRAIN):
    options, given = parse("", groups, line.split())
    return settle(options, given, saved, facts)


def saved_of(line):
    """What a checkpoint of a training with this command line brings."""
    settings = settled(line, facts=FACTS)
    parts = ("data", "train", "model", "diffusion")
    return Saved({part: dataclasses.asdict(getattr(settings, part)) for part in parts}, "m.pt")


def test_settings_are_frozen():
    settings = settled("--data_dir x")
    for part, name in ((settings, "image_size"), (settings.model, "version"), (settings.train, "lr")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, getattr(part, name))


def test_settling_changes_nothing_that_it_is_given():
    options, given = parse("", TRAIN, "--data_dir y --lr 0.5 --overfit 2".split())
    saved = saved_of("--data_dir x --dropout 0.3")
    before = copy.deepcopy((options, given, saved, FACTS))
    first, second = (settle(options, given, saved, FACTS) for _ in range(2))
    assert first == second and (options, given, saved, FACTS) == before


def test_flags_win_over_the_recipe_over_the_checkpoint_over_the_defaults():
    saved = saved_of("--data_dir x --version v2 --recipe none --lr 0.25 --batch_size 3 --ema_rate 0.5")
    default = next(item.default for item in dataclasses.fields(TrainOptions) if item.name == "weight_decay")
    kept = settled("--lr 0.125", saved).train
    assert (kept.lr, kept.batch_size, kept.ema_rate) == (0.125, 3, "0.5")  # the flag, then the checkpoint
    fresh = settled("--data_dir x --recipe published --version v2 --batch_size 5").train
    assert (fresh.batch_size, fresh.ema_rate) == (5, "0.9999") and fresh.weight_decay == default
    assert settled("--data_dir x --recipe none").train.lr == TrainOptions.lr


def test_the_checkpoint_s_network_may_not_be_contradicted():
    saved = saved_of("--data_dir x --num_channels 16")
    assert settled("", saved).model.num_channels == 16
    with pytest.raises(UserError, match="--num_channels 32 contradicts the checkpoint m.pt"):
        settled("--num_channels 32", saved)


def test_the_data_decide_what_is_left_open():
    facts = DataFacts("MSD", "upright", "-160,240", "liver=1,tumour=2", 2, True)
    found = settled("--data_dir x --data_name AUTO --classes auto", facts=facts)
    assert (found.data.data_name, found.data.ct_window, found.data.classes) == ("MSD", "-160,240", "liver=1,tumour=2")
    assert found.train.orientation == "upright" and found.diffusion.class_activation == "softmax"
    asked = settled("--data_dir x --orientation any --classes organ=1+2", facts=facts)
    assert asked.train.orientation == "any" and asked.data.classes == "organ=1+2"


def test_overfitting_drops_nothing_out():
    assert settled("--data_dir x --dropout 0.3").model.dropout == 0.3
    assert settled("--data_dir x --dropout 0.3 --overfit 4").model.dropout == 0


def test_what_a_command_changes_of_the_run_it_goes_on_with():
    saved = saved_of("--data_dir x --lr 0.25")
    assert changes(settled("--lr 0.125 --max_steps 9", saved), saved) == "--lr 0.125 (was 0.25)"
    assert changes(settled("--lr 0.25", saved), saved) is None


def test_without_data_training_is_refused():
    with pytest.raises(UserError, match="--data_dir: is needed"):
        settled("")


def test_sampling_takes_the_steps_to_take_from_the_flag_and_t_from_the_checkpoint():
    saved = saved_of("--data_dir x --diffusion_steps 200 --image_size 64")
    found = settled("--model_path m.pt --data_dir x --diffusion_steps 7", saved, groups=SAMPLE)
    assert found.sample.diffusion_steps == 7 and found.diffusion.diffusion_steps == 200
    assert found.image_size == 64
    assert settled("--model_path m.pt --data_dir x --image_size 96", saved, groups=SAMPLE).image_size == 96


def test_a_folder_is_sampled_as_training_divided_it(tmp_path):
    held = f"--data_dir {tmp_path} --val_fraction 0.25 --split_seed 3"
    saved = saved_of(held)
    found = settled(f"--model_path m.pt --data_dir {tmp_path}", saved, groups=SAMPLE).data
    assert (found.val_fraction, found.split_seed) == (0.25, 3)
    (tmp_path / "other").mkdir()
    assert settled(f"--model_path m.pt --data_dir {tmp_path / 'other'}", saved, groups=SAMPLE).data.val_fraction == 0
    with pytest.raises(UserError, match="--group_key .*: training divided .* without --group_key"):
        settled(f"--model_path m.pt --data_dir {tmp_path} --group_key ^(.)", saved, groups=SAMPLE)


def test_a_plain_unet_samples_one_member():
    saved = saved_of("--data_dir x --version unet")
    assert settled("--model_path m.pt --data_dir x --num_ensemble 9", saved, groups=SAMPLE).sample.num_ensemble == 1


@pytest.mark.parametrize(
    ("trained", "flags", "members"),
    [
        ("--version v2", "", 0),  # the default recipe trains in stages
        ("--version v2", "--num_ensemble 7", 7),
        ("--version v2 --recipe none", "", 5),
        ("--version v1 --recipe none", "", 5),
        ("--version v1 --recipe none", "--num_ensemble 0", 5),
    ],
)
def test_a_v2_trained_in_stages_draws_no_members_unless_asked(trained, flags, members):
    saved = saved_of(f"--data_dir x {trained}")
    assert settled(f"--model_path m.pt --data_dir x {flags}", saved, groups=SAMPLE).sample.num_ensemble == members


def test_without_members_there_is_no_denoising_to_show():
    saved = saved_of("--data_dir x")
    with pytest.raises(UserError, match="--debug True: shows how members are drawn; add --num_ensemble N"):
        settled("--model_path m.pt --data_dir x --debug True", saved, groups=SAMPLE)
