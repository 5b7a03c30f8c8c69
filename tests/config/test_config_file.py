"""YAML files of options with what they include, and the record of a run."""

import dataclasses
import os

import pytest
import yaml
from conftest import TINY
from helpers import GROUPS, SAMPLE, TRAIN, equal, refused, train_options, values

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.config.command_line import parse
from guided_diffusion.config.config_file import write_config
from guided_diffusion.config.sample_options import EvalOptions


@pytest.fixture
def write(tmp_path):
    """A function (name, text) that writes a YAML file and returns the flag that reads it."""

    def put(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return f"--config {tmp_path / name}"

    return put


def test_yaml_reads_the_same_names(write):
    line = write(
        "run.yaml", "lr: 1e-4\nlearn_sigma: True\nchannel_mult: [1, 2, 4]\nattention_resolutions: 16\nversion: 1\n"
    )
    got = values(line)
    assert got["lr"] == 1e-4 and got["learn_sigma"] is True and got["channel_mult"] == "1,2,4"
    assert got["attention_resolutions"] == "16" and got["version"] == "v1"
    _, given = train_options(line)
    assert given == {"lr", "learn_sigma", "channel_mult", "attention_resolutions", "version"}


def test_flags_win_over_yaml(write):
    line = write("run.yaml", "lr: 1e-3\nbatch_size: 2\n")
    for both in (f"{line} --lr 1e-5", f"--lr 1e-5 {line}"):
        assert (values(both)["lr"], values(both)["batch_size"]) == (1e-5, 2)


@pytest.mark.parametrize(
    "text, words",
    [
        ("lr: [1", "is no valid YAML"),
        ("just text", "must hold lines of the form 'flag: value'"),
        ("", "must hold lines"),
        ("batch_sise: 2", "--batch_sise: no such flag, did you mean --batch_size?"),
        ("compile: true\nfsdp: true", "--compile True does not go with --fsdp True"),
        ("num_ensemble: 5", "is a flag of segmentation_sample.py"),
        ("batch_size: many", "--batch_size many: must be a whole number"),
        ("batch_size: 3.7", "--batch_size 3.7: must be a whole number"),
        ("batch_size: true", "--batch_size True: must be a whole number"),
        ("batch_size:", "--batch_size: needs a value"),
        ("learn_sigma: 7", "--learn_sigma 7: must be True or False"),
        ("lr: -1", "run.yaml: --lr -1: must be above 0"),
        ("5: 6", "--5: no such flag"),
    ],
)
def test_bad_yaml(write, text, words):
    assert words in refused(write("run.yaml", text))


@pytest.mark.parametrize(
    "text, problem",
    [
        (b"lr: 1\n seed: [a\n", "is no valid YAML (line 2, column 6: mapping values are not allowed here); correct it"),
        (b"lr: 1\nseed: \x07\n", "is no valid YAML (line 2, column 7: character U+0007 is not allowed); correct it"),
        (b"lr: 2020-13-01\n", "--lr 2020-13-01: must be a number"),
        (b"lr: \xff\n", "is not in UTF-8 (invalid start byte at byte 4); save it as UTF-8"),
    ],
)
def test_a_yaml_file_that_cannot_be_read_gives_the_flag_and_the_place(tmp_path, text, problem):
    (tmp_path / "run.yaml").write_bytes(text)
    (tmp_path / "outer.yaml").write_text("include: run.yaml\n")
    assert refused(f"--config {tmp_path / 'run.yaml'}") == f"--config {tmp_path / 'run.yaml'}: {problem}"
    line = f"--config {tmp_path / 'outer.yaml'}"
    assert refused(line) == f"{line}: include {tmp_path / 'run.yaml'}: {problem}"


def test_all_mistakes_of_a_yaml_file_are_named_at_once(write):
    line = write(
        "run.yaml",
        "learning_rate: 1e-3\nseed: 3\nbatch_size: many\nown_predictions: 0.5\nlr: -1\nnum_ensemble: 5\nqqq: 1\n",
    )
    assert refused(line).split("; ") == [
        f"{line}: asks for own_predictions 0.5, which this version no longer has: use version 0.1.0",
        "--learning_rate: no such flag, did you mean --lr?",
        "--batch_size many: must be a whole number",
        "--lr -1: must be above 0",
        "--num_ensemble: is a flag of segmentation_sample.py, not of this command",
        "--qqq: no such flag, see --help_all",
    ]


def test_yaml_that_cannot_be_read(tmp_path):
    path = tmp_path / "none.yaml"
    assert refused(f"--config {path}") == f"--config {path}: No such file or directory; name a YAML file"
    assert refused(f"--config {tmp_path}") == (
        f"--config {tmp_path}: is a folder, not a file; move it away, or name the file"
    )


# ---- includes ----------------------------------------------------------------------------------------------------


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


def test_many_includes_are_refused(write, tmp_path):
    for n in range(12):  # 2^12 readings
        write(f"f{n}.yaml", f"include: [f{n + 1}.yaml, f{n + 1}.yaml]\n")
    write("f12.yaml", "lr: 1\n")
    assert "f0.yaml: includes more than 100 files; put the values into fewer" in refused(f"--config {tmp_path}/f0.yaml")
    for n in range(200):
        write(f"c{n}.yaml", f"include: c{n + 1}.yaml\n")
    assert "c0.yaml: includes more than 100 files" in refused(f"--config {tmp_path}/c0.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: 2020-01-01", "--lr 2020-01-01: must be a number"),
        ("seed: 12:30:00", "--seed 12:30:00: must be a whole number"),
        ("seed: 1_000", "--seed 1_000: must be a whole number"),
        ("seed: 0x10", "--seed 0x10: must be a whole number"),
        ("seed: 1180591620717411303424", "--seed 1180591620717411303424: must be at most"),
        (f"seed: {'9' * 5000}", "9...: must be a whole number"),
        ("lr: .nan", "--lr .nan: is not a finite number"),
        ("lr: [1, 2]", "--lr [1, 2]: must be one value, not a list"),
        ("lr: {a: 1}", "--lr {'a': 1}: must be one value"),
        ("channel_mult: [1, [2]]", "--channel_mult [1, [2]]: must be one value, or a list of values"),
        ("channel_mult: [1, null, 2]", "--channel_mult 1,,2: must be numbers separated by commas"),
        ("out_dir: ''", "--out_dir: is empty"),
        ("out_dir: [a, b]", "must be one value, not a list"),
        ("seed: 1\nseed: 2", "the key 'seed' occurs twice; keep one"),
        ("include: [[a]]", "include: must be the path"),
        ('include: "a\\nb"', "include: must be the path"),
        ("include: /dev/zero", "/dev/zero: is a pipe, socket or device, not a file"),
        ("? [a]\n: 1", "a key must be a word"),
        ("? {a: 1}\n: 1", "a key must be a word"),
        ("null: 1", "--null: no such flag"),
        ('"a\\nb": 1', "--a\\nb: no such flag"),
    ],
)
def test_values_that_yaml_could_mistake(write, text, words):
    line = refused(write("run.yaml", text))
    assert words in line and line.isprintable()


def test_a_pipe_that_a_file_includes_is_not_waited_for(write, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    line = refused(write("run.yaml", "include: pipe"))
    assert f"include {tmp_path}/pipe: is a pipe, socket or device, not a file" in line


def test_words_of_yaml_mean_what_they_are_written_as(write):
    got = values(write("run.yaml", "out_dir: 2020-01-01\nval_dir: 1.10\nfsdp: on\ncompile: no\nseed: 010\n"))
    assert [got[name] for name in ("out_dir", "val_dir", "fsdp", "compile", "seed")] == [
        *("2020-01-01", "1.10"),
        *(True, False, 10),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("batch_sise: 2", "other.yaml: --batch_sise: no such flag, did you mean --batch_size?"),
        ("batch_size: many", "other.yaml: --batch_size many: must be a whole number"),
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


UNRECORDED = {
    "dry_run",
    "data_dir",
    "cache_dir",
    "val_dir",
    "out_dir",
    "resume_checkpoint",
    "init_from",
    "encoder_weights",
}  # in checkpoints


@pytest.mark.parametrize("case", RUNS)
def test_the_record_repeats_the_run(script, pictures, tmp_path, case):
    first, second = tmp_path / "first", tmp_path / "second"
    data = ["--data_name FOLDER --data_dir", pictures]
    script("segmentation_train", [*data, "--out_dir", first, TINY, RUNS[case], "--max_steps 1"])
    script("segmentation_train", ["--config", first / "config.yaml", "--out_dir", second])
    one, other = (load_checkpoint(folder / "model000001.pt") for folder in (first, second))
    assert other.config == one.config  # which name no folder, and the runs differ in --out_dir alone
    assert equal(one.model, other.model)
    groups, _ = parse("", TRAIN, ["--config", str(first / "config.yaml")])
    for options, key in zip(groups[:4], ("data", "train", "model", "diffusion"), strict=True):
        values = dataclasses.asdict(options)
        recorded = values | one.config[key]
        assert recorded == values and values.keys() - one.config[key].keys() <= UNRECORDED, key
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
    ("text", "asked"),
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
def test_an_option_that_is_gone_is_refused_where_it_is_in_use(write, text, asked):
    line = write("run.yaml", text)
    assert refused(line) == f"{line}: asks for {asked}, which this version no longer has: use version 0.1.0"


def test_coupling_is_neutral_where_it_was_off_and_else_says_what_replaced_it(write):
    command = "--model_path M.pt --data_dir D"
    for text in ("coupling: own", "coupling: auto"):
        assert values(f"{command} {write('run.yaml', text)}", SAMPLE)["num_ensemble"] == 0
    line = write("run.yaml", "coupling: coarse")
    assert refused(f"{command} {line}", SAMPLE) == (
        f"{line}: asks for coupling coarse, which this version no longer has: without --num_ensemble the condition "
        "model's own mask and probability are the answer, or use version 0.4.0"
    )


# ---- the record of a run in other commands -----------------------------------------------------------------------


@pytest.fixture
def record(tmp_path):
    """The flag that reads the config.yaml of a training run with the given flags."""

    def put(line):
        options, _ = train_options(line)
        settled = {name: value for group in options for name, value in dataclasses.asdict(group).items()}
        return f"--config {write_config(settled, tmp_path)}"

    return put


RUN = (
    "--data_name FOLDER --data_dir D --val_fraction 0.2 --out_dir O --recipe none --lr 1e-3 --batch_size 2 --seed 5 "
    "--compile True --image_size 64 --num_channels 16 --noise_schedule linear --diffusion_steps 50 --gpu_dev cpu"
)


def test_sampling_takes_data_and_network_of_a_record(record, capsys):
    line = record(RUN)
    (sample, data, model, diffusion, process), given = parse("", SAMPLE, line.split())
    assert (data.data_name, data.data_dir, data.val_fraction) == ("FOLDER", "D", 0.2)
    assert (model.image_size, model.num_channels, diffusion.noise_schedule) == (64, 16, "linear")
    assert (sample.out_dir, sample.batch_size, sample.seed, sample.compile) == ("./results/", 0, 0, False)
    assert (sample.diffusion_steps, process.gpu_dev) == (0, "0")
    settled = {"mask_loss", "coarse_loss", "input_scale"}  # auto and 0 are settled in a record
    changed = {"data_name", "data_dir", "val_fraction", "image_size", "num_channels", "noise_schedule"}
    assert given == changed | settled
    assert capsys.readouterr().out == (
        f"{line}: holds a training run's settings; not used here: recipe, out_dir, batch_size, lr, compile, seed, "
        "diffusion_steps, gpu_dev\n"
    )


def test_flags_win_over_a_record_and_other_data_over_all_of_its_data(record):
    line = f"{record(RUN)} --data_dir E --out_dir R --num_channels 32 --seed 7"
    (sample, data, model, _, _), given = parse("", SAMPLE, line.split())
    assert (data.data_dir, data.val_fraction, sample.out_dir, sample.seed) == ("E", 0.0, "R", 7)
    assert model.num_channels == 32 and "data_name" not in given


def test_the_check_of_data_takes_its_kind_and_evaluation_goes_by_the_manifest(record):
    line = record(RUN)
    (options, data), _ = parse("", GROUPS["check_data"], line.split())
    assert (data.data_name, data.data_dir, data.val_fraction) == ("FOLDER", "D", 0.2)
    assert options.out_dir == "data_check"
    (options,), given = parse("", [EvalOptions], [*line.split(), "--pred_dir", "P"])
    assert (options.data_name, options.out_dir, given) == ("", "", {"pred_dir"})


def test_training_takes_all_of_a_record(record, capsys):
    line = record(RUN)
    got = values(line)
    assert (got["lr"], got["out_dir"], got["gpu_dev"], got["diffusion_steps"]) == (1e-3, "O", "cpu", 50)
    assert capsys.readouterr().out == ""


def test_a_typo_in_a_record_is_refused_and_other_files_are_no_records(record, write, tmp_path):
    line = record(RUN)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text() + "num_chanels: 8\n")
    assert refused(line, SAMPLE) == f"{line}: --num_chanels: no such flag, did you mean --num_channels?"
    assert "--lr: is a flag of segmentation_train.py" in refused(write("own.yaml", "lr: 1e-3\n"), SAMPLE)


def test_what_only_shaped_the_training_of_an_old_run_does_not_stop_sampling(record, tmp_path, capsys):
    line, path = record(RUN), tmp_path / "config.yaml"
    path.write_text(path.read_text() + "own_predictions: 0.5\nloss_weighting: none\n")
    assert "own_predictions" not in parse("", SAMPLE, line.split())[1]
    assert capsys.readouterr().out.endswith("gpu_dev, own_predictions\n")
    path.write_text(path.read_text() + "self_condition: true\n")
    assert refused(line, SAMPLE).startswith(f"{line}: asks for self_condition True")


def test_a_record_is_known_where_another_file_includes_it(record, write, capsys):
    record(RUN)
    line = write("sample.yaml", "include: config.yaml\nnum_ensemble: 3\nseed: 9\n")
    (sample, data, *_), _ = parse("", SAMPLE, line.split())
    assert (sample.num_ensemble, sample.seed, data.data_dir) == (3, 9, "D")
    assert capsys.readouterr().out.startswith(f"{line}: holds a training run's settings")


def test_one_of_several_processes_speaks_of_the_record(record, capsys, monkeypatch):
    line = record(RUN).split()
    parse("", SAMPLE, [*line, "--multi_gpu", "0,1"])  # starts the processes
    assert capsys.readouterr().out == ""
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        parse("", SAMPLE, [*line, "--multi_gpu", "0,1", "--multi_gpu="])
        assert capsys.readouterr().out.count("\n") == lines


def test_every_verb_runs_with_the_record_of_a_run(script, pictures, tmp_path):
    run, results = tmp_path / "run", tmp_path / "results"
    data = ["--data_name FOLDER --data_dir", pictures, "--val_fraction 0.3"]
    script("segmentation_train", [*data, "--out_dir", run, TINY, "--max_steps 1"])
    config = ["--config", run / "config.yaml"]
    assert script("check_data", [*config, "--out_dir", tmp_path / "checked"]) in (0, 1)
    line = ["--model_path", run / "model000001.pt", "--out_dir", results, "--num_ensemble 2 --diffusion_steps 2"]
    assert not script("segmentation_sample", [*config, *line, "--num_workers 0"])
    assert not script("segmentation_eval", [*config, "--pred_dir", results])
    assert (results / "summary.json").exists() and not (run / "summary.json").exists()
