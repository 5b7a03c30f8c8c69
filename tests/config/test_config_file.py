"""YAML files of options: what they include, and the record of a run, from which it is repeated."""

import dataclasses

import pytest
import yaml
from conftest import TINY
from test_options import TRAIN, refused, values
from test_training_runs import equal

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.config.command_line import parse

# ---- includes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """A function (name, text) that writes a YAML file and returns the flag that reads it."""

    def put(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return f"--config {tmp_path / name}"

    return put


def test_later_includes_win_and_the_file_itself_over_all(write):
    write("a.yaml", "lr: 1e-3\nbatch_size: 2\nseed: 1\n")
    write("below/b.yaml", "include: c.yaml\nbatch_size: 3\nseed: 2\n")
    write("below/c.yaml", "weight_decay: 0.5\nseed: 3\n")
    line = write("run.yaml", "seed: 4\ninclude: [a.yaml, below/b.yaml]\nmax_steps: 7\n")
    got = values(f"{line} --max_steps 8")
    assert [got[name] for name in ("lr", "weight_decay", "batch_size", "seed", "max_steps")] == [1e-3, 0.5, 3, 4, 8]


def test_a_preset_in_an_included_file_is_below_explicit_values(write):
    write("base.yaml", "preset: S\n")
    got = values(write("run.yaml", "include: base.yaml\nnum_channels: 64\n"))
    assert (got["channel_mult"], got["num_channels"], got["preset"]) == ("1,1,2,2,4", 64, "S")


def test_the_same_file_twice_is_no_cycle(write):
    write("base.yaml", "lr: 1e-3\n")
    write("other.yaml", "include: base.yaml\n")
    assert values(write("run.yaml", "include: [base.yaml, other.yaml]"))["lr"] == 1e-3


@pytest.mark.parametrize("text", ["include: run.yaml", "include: other.yaml"])
def test_cycles_are_refused_in_one_line(write, tmp_path, text):
    write("other.yaml", "include: [run.yaml]\n")
    line = refused(write("run.yaml", text))
    assert "is included by itself" in line and line.endswith(f"> {tmp_path / 'run.yaml'})")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("batch_sise: 2", "other.yaml: --batch_sise: no such flag; did you mean --batch_size?"),
        ("batch_size: many", "other.yaml: batch_size: 'many' is not of type int"),
        ("- 1", "other.yaml: must hold lines"),
        ("include: {a: 1}", "other.yaml: include: must be the path of a YAML file"),
        ("include: none.yaml", "none.yaml: No such file or directory; name a YAML file"),
        ("lr: [1", "other.yaml: is no valid YAML"),
    ],
)
def test_errors_name_the_included_file(write, text, wanted):
    write("other.yaml", text)
    assert wanted in refused(write("run.yaml", "include: other.yaml"))


# ---- the record of a run -----------------------------------------------------------------------------------------


RUNS = {
    "": "",
    "v2": "--version v2 --ss_former add --objective v --warmup_steps 1 --lr_anneal_steps 5 --lr_decay cosine",
    "unet": "--version unet --raters mean",
    "recipe": "--recipe published --diffusion_steps 10",
    "recipe in parts": "--version v2 --recipe auto --mask_loss bce_dice",
    "recipe without its objective": "--version v2 --recipe staged --predict_xstart False --diffusion_steps 10",
}


@pytest.mark.parametrize("case", RUNS)
def test_the_record_repeats_the_run(script, pictures, tmp_path, case):
    first, second = tmp_path / "first", tmp_path / "second"
    data = ["--data_name FOLDER --data_dir", pictures]
    script("segmentation_train", [*data, "--out_dir", first, TINY, RUNS[case], "--max_steps 1"])
    script("segmentation_train", ["--config", first / "config.yaml", "--out_dir", second])
    one, other = (load_checkpoint(folder / "model000001.pt") for folder in (first, second))
    assert other.config == one.config | {"train": one.config["train"] | {"out_dir": str(second)}}
    assert equal(one.model, other.model)
    groups, _ = parse("", TRAIN, ["--config", str(first / "config.yaml")])
    for options, key in zip(groups[:4], ("data", "train", "model", "diffusion"), strict=True):
        values = dataclasses.asdict(options)
        values.pop("dry_run", None)  # says nothing of what ran
        assert values == one.config[key], key
    assert groups[4].precision == "fp32"


def test_going_on_writes_the_record_anew_and_it_still_begins_at_the_start(script, pictures, tmp_path):
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY]
    script("segmentation_train", [*data, "--max_steps 1"])
    script("segmentation_train", ["--out_dir", tmp_path, "--resume_checkpoint auto --max_steps 2 --lr 1e-3"])
    record = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (record["lr"], record["max_steps"], record["resume_checkpoint"]) == (1e-3, 2, "")
    assert record["batch_size"] == 2 and "ss_former" not in record
    line = ["--config", tmp_path / "config.yaml", "--resume_checkpoint auto --max_steps 3"]
    assert script("segmentation_train", line) == 0
    assert load_checkpoint(tmp_path / "model000003.pt").step == 3


IDLE = """
self_condition: false
nbp_activation: sigmoid
concat_image: true
condition_labels: true
zero_terminal_snr: false
loss_weighting: none
min_snr_gamma: 5.0
own_predictions: 0.0
"""


def test_a_record_of_version_0_1_0_still_runs(script, pictures, tmp_path):
    data = ["--data_name FOLDER --data_dir", pictures, TINY, "--version v2 --max_steps 1"]
    script("segmentation_train", [*data, "--out_dir", tmp_path / "new"])
    record = tmp_path / "old.yaml"
    record.write_text((tmp_path / "new" / "config.yaml").read_text() + IDLE)
    script("segmentation_train", ["--config", record, "--out_dir", tmp_path / "old"])
    one, other = (load_checkpoint(tmp_path / out / "model000001.pt") for out in ("new", "old"))
    assert equal(one.model, other.model)
    assert yaml.safe_load((tmp_path / "old" / "config.yaml").read_text()).keys().isdisjoint(yaml.safe_load(IDLE))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("self_condition: True", "self_condition True"),
        ("nbp_activation: sine", "nbp_activation sine"),
        ("concat_image: False", "concat_image False"),
        ("condition_labels: False", "condition_labels False"),
        ("zero_terminal_snr: 'True'", "zero_terminal_snr True"),
        ("loss_weighting: min_snr", "loss_weighting min_snr"),
        ("own_predictions: 0.5", "own_predictions 0.5"),
        ("begin_at: 0.5", "begin_at 0.5"),
        ("solver_type: sde", "solver_type sde"),
        ("time_spacing: logsnr", "time_spacing logsnr"),
        ("dynamic_threshold: 0.9", "dynamic_threshold 0.9"),
    ],
)
def test_an_option_that_is_gone_is_refused_where_it_is_in_use(write, text, told):
    line = write("run.yaml", text)
    assert refused(line) == f"{line}: asks for {told}, which this version no longer has: use version 0.1.0"
