"""The command line: forms of a flag, and the lines that name mistakes."""

import pytest
from helpers import GROUPS, SAMPLE, TRAIN, refused, train_options, values

from guided_diffusion.config.command_line import COMMANDS, SYNONYMS, fields_of, options_from, parse
from guided_diffusion.config.fields import REMOVED, REPLACED, last_version
from guided_diffusion.config.options import DataOptions, ModelOptions
from guided_diffusion.config.sample_options import EvalOptions
from guided_diffusion.runtime.errors import UserError

# ---- forms of a flag ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", True),
        *((word, True) for word in ("True", "true", "1", "yes")),
        *((no, False) for no in ("False", "0", "no")),
    ],
)
def test_booleans(text, value):
    assert values(f"--learn_sigma {text} --lr 1")["learn_sigma"] is value
    assert values(f"--lr 1 --learn-sigma {text}")["learn_sigma"] is value


def test_flags_that_need_a_value():
    assert refused("--learn_sigma maybe") == "--learn_sigma maybe: must be True or False"
    assert refused("--lr") == "--lr: needs a value"
    assert refused("--lr --learn_sigma") == "--lr: needs a value"
    assert refused("--batch-size= --seed") == "--batch_size: needs a value; --seed: needs a value"
    assert refused("--config") == "--config: needs a value"
    assert refused("--config=").startswith("--config: is empty")
    assert "ignored explicit argument '1'" in refused("--help=1")


def test_dashes_and_underscores_and_equal_signs():
    assert values("--num-channels 64 --learn-sigma=True --batch_size=3 --multi-gpu=") == values(
        "--num_channels 64 --learn_sigma True --batch_size 3"
    )


@pytest.mark.parametrize("groups", [TRAIN, SAMPLE, GROUPS["check_data"]])
@pytest.mark.parametrize("window", ["-160,240", "-1e3,5", "-.5,5", "-1000,-200"])
def test_a_list_that_begins_below_0_follows_its_flag(window, groups, monkeypatch):
    """As the help shows it; argparse alone takes it for a flag."""
    monkeypatch.setattr("sys.argv", ["script.py", "--ct-window", window, "--num_workers", "3"])
    assert parse("", groups)[0][groups.index(DataOptions)].ct_window == window
    assert values(f"--num_workers 3 --ct_window {window}", groups)["ct_window"] == window


def test_given_holds_what_was_written_only():
    assert train_options("--lr 1e-4 --batch-size 8")[1] == {"lr", "batch_size"}


def test_programs_give_the_same_values_as_a_dict():
    (options,), given = options_from([ModelOptions], {"num_channels": 64, "learn_sigma": True})
    assert (options.num_channels, options.learn_sigma, given) == (64, True, {"num_channels", "learn_sigma"})
    with pytest.raises(UserError, match="^--dropout 2: must be at most 0.99; --num_heads x: must be a whole number$"):
        options_from([ModelOptions], {"dropout": 2, "num_heads": "x"})


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REMOVED)
@pytest.mark.parametrize("groups", [TRAIN, SAMPLE], ids=["train", "sample"])
def test_a_flag_that_is_gone_names_the_version_that_has_it(name, groups):
    instead = f" ({REPLACED[name]})" if name in REPLACED else ""
    line = f"--{name}: is no longer in this version, leave it out{instead} or use version {last_version(name)}"
    assert refused(f"--{name} True", groups) == line
    assert name not in fields_of(groups)


def test_what_a_checkpoint_alone_sets_is_no_flag_but_a_run_s_record_has_it(tmp_path):
    assert refused("--nbp_factor sigmoid") == "--nbp_factor: is no flag; a checkpoint sets it"
    (tmp_path / "run.yaml").write_text("nbp_factor: sigmoid\n")
    (model,), _ = parse("", [ModelOptions], ["--config", str(tmp_path / "run.yaml")])
    assert model.nbp_factor == "sigmoid"


def test_abbreviations_are_not_guessed():
    assert refused("--image_siz 64") == "--image_siz: no such flag, did you mean --image_size?"
    assert refused("--batchsize 64") == "--batchsize: no such flag, did you mean --batch_size?"
    assert refused("--qqq -1,2") == "--qqq: no such flag, see --help_all"


@pytest.mark.parametrize(
    ("word", "flag", "groups"),
    [
        ("learning_rate", "lr", TRAIN),
        ("learning-rte", "lr", TRAIN),
        ("iterations", "max_steps", TRAIN),
        ("steps", "max_steps", TRAIN),
        ("steps", "diffusion_steps", SAMPLE),
        ("model", "model_path", SAMPLE),
        ("model", "version", TRAIN),
        ("checkpoint", "resume_checkpoint", TRAIN),
        ("checkpoint", "model_path", SAMPLE),
        ("ensemble", "num_ensemble", SAMPLE),
        ("num-samples-per-image", "num_ensemble", SAMPLE),
        ("size", "image_size", TRAIN),
        ("batch", "batch_size", TRAIN),
        ("output-dir", "out_dir", SAMPLE),
        ("T", "diffusion_steps", TRAIN),
        ("device", "gpu_dev", SAMPLE),
        ("predictions", "pred_dir", [EvalOptions]),
    ],
)
def test_the_words_of_other_programs_are_known(word, flag, groups):
    name = word.replace("-", "_")
    assert refused(f"--{word} 3", groups) == f"--{name}: no such flag, did you mean --{flag}?"


@pytest.mark.parametrize("word", ["epochs", "num_epochs", "num-epochs", "Epochs", "epoch"])
def test_epochs_are_converted_to_steps(word):
    name = word.replace("-", "_")
    line = f"--{name}: no such flag; training counts steps: --max_steps = epochs x images / batch_size"
    assert refused(f"--{word} 3") == line


@pytest.mark.parametrize(
    ("word", "flag", "script", "groups"),
    [
        ("learning_rate", "lr", "segmentation_train.py", SAMPLE),
        ("epochs", "max_steps", "segmentation_train.py", SAMPLE),
        ("ckpt", "model_path", "segmentation_sample.py", [EvalOptions]),
        ("predictions", "pred_dir", "segmentation_eval.py", TRAIN),
    ],
)
def test_a_synonym_of_another_scripts_flag_names_both(word, flag, script, groups):
    line = f"--{word}: no such flag; --{flag} is a flag of {script}, not of this command"
    assert refused(f"--{word} 3", groups) == line


def test_a_known_flag_with_wrong_dashes():
    assert refused("-lr 1e-3") == "-lr: write --lr"
    assert refused("-lr=1e-3 -batch-size 4") == "-lr: write --lr; -batch-size: write --batch_size"
    assert refused("--num_res-blocks 3 -config x.yaml") == (
        "--num_res-blocks: write --num_res_blocks; -config: write --config"
    )
    assert refused("-lr 1", SAMPLE) == "--lr: is a flag of segmentation_train.py, not of this command"


def test_a_value_out_of_range_is_echoed_as_typed():
    assert refused("--lr 0 --dropout 1.50 --batch_size 00 --val_fraction=nan") == (
        "--lr 0: must be above 0; --dropout 1.50: must be at most 0.99; --batch_size 00: must be above 0; "
        "--val_fraction nan: is not a finite number"
    )


def test_synonyms_stand_for_flags_and_are_none():
    flags = {name for groups in COMMANDS.values() for name in fields_of(groups)}
    words = {word for words in SYNONYMS.values() for word in words.split()}
    assert SYNONYMS.keys() <= flags and not words & flags


def test_all_mistakes_of_a_command_line_are_named_at_once():
    line = refused("--learning_rate 1e-3 --epochs=5 stray --lr x --image_size 0 --num_ensemble 5 --seed 1")
    assert line == "; ".join(
        [
            "--learning_rate: no such flag, did you mean --lr?",
            "--epochs: no such flag; training counts steps: --max_steps = epochs x images / batch_size",
            "'stray': follows no flag",
            "--num_ensemble: is a flag of segmentation_sample.py, not of this command",
            "--lr x: must be a number",
            "--image_size 0: must be above 0",
        ]
    )


def test_a_value_without_its_flag():
    assert refused("stray") == "'stray': follows no flag"
    assert refused("--seed 1 stray") == "'stray': follows no flag"


def test_flags_of_the_other_script():
    assert "--num_ensemble: is a flag of segmentation_sample.py" in refused("--num_ensemble 5")
    assert "--lr: is a flag of segmentation_train.py" in refused("--lr 1e-4", SAMPLE)
    assert "--pred_dir: is a flag of segmentation_eval.py" in refused("--pred_dir x", SAMPLE)
    assert "--image_size: is a flag of segmentation_train.py" in refused("--image_size 64", [EvalOptions])


def test_a_mistake_ends_a_script_with_one_line_and_status_2(script, capsys):
    from guided_diffusion.runtime.errors import run_script

    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: script("segmentation_sample", "--model m.pt --steps many --debug perhaps"))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: --model: no such flag, did you mean --model_path?; --steps: no such flag, did you mean "
        "--diffusion_steps?; --debug perhaps: must be True or False\n"
    )
