"""The parsers of values and the rules of options: whatever a user writes is read, or refused in one line."""

import dataclasses
import os

import pytest
from helpers import SAMPLE, TRAIN, refused, values

from guided_diffusion.config.command_line import COMMANDS, fields_of, options_from, parse
from guided_diffusion.config.demo_options import DemoOptions
from guided_diffusion.config.fields import option
from guided_diffusion.config.sample_options import EvalOptions
from guided_diffusion.config.values import as_boolean, as_real, as_whole, check_value, is_path, numbers, read_value
from guided_diffusion.runtime.errors import UserError

EVERY = {**COMMANDS, "demo.py": (DemoOptions,)}
ODD = (
    *("", " ", "-1", "0", "-3", "1e3", "1e999", "-1e999", "nan", "inf", "-inf", ".nan", "+5", " 5 ", "1_000", "0x10"),
    *("010", "\uff13\uff12", "\u00b2", "\u0663", "1,,2", ",", "1,2,", "1,nan", "0.9,0.9", "1;2", "--", "None", "True"),
    *("on", "2020-01-01", "9" * 30, "9" * 5000, "-" + "9" * 30, "1." + "9" * 5000, "2" * 10 + ",", ",".join("1" * 300)),
    *("a\nb", "a\0b", "a\udcffb", "x" * 300, "x/" * 3000, "/dev/zero", "/dev/null/x", "gs://", "gs://../x", "~"),
    *("x.py:Y", "(", "a{999999999999}"),
)  # fmt: skip


def items():
    """Every option of every command, once."""
    return {(item.name, item.type): item for groups in EVERY.values() for item in fields_of(groups).values()}.values()


def one_line(error):
    message = str(error)
    assert message.startswith("--") and message.isprintable() and len(message) < 400, message
    return message


# ---- the parsers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["3.0", "1e3", "1_000", "0x10", "\uff13\uff12", "\u00b2", "", "+", "--1", "9" * 50, "1 0"]
)
def test_what_is_no_whole_number(text):
    with pytest.raises(ValueError):
        as_whole(text)


@pytest.mark.parametrize("text", ["1_000", "1,5", "\uff13", "1e", ".", "", "0x1p3", "1 0", "True"])
def test_what_is_no_number(text):
    with pytest.raises(ValueError):
        as_real(text)


def test_what_is_a_number():
    assert [as_whole(text) for text in ("007", "+5", "-3", " 4 ")] == [7, 5, -3, 4]
    assert [as_real(text) for text in ("1e-4", ".5", "5.", "+1E3", "-0")] == [1e-4, 0.5, 5, 1000, 0]
    assert as_real("1e999") == float("inf") and as_real("-Infinity") != as_real("-Infinity")
    assert [as_boolean(word) for word in ("on", "Yes", "1", "OFF", "no", "0")] == [True] * 3 + [False] * 3
    assert numbers("x", " 1, 2.5", float) == (1, 2.5) and numbers("x", " ", int) == ()


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("1,,2", int, "--x 1,,2: must be whole numbers separated by commas"),
        ("1,", float, "--x 1,: must be numbers separated by commas"),
        ("1,nan", float, "--x 1,nan: holds a number that is not finite"),
        ("1,1e999", float, "not finite"),
        ("1,-3", int, "every number must be at least 1"),
        ("1,99", int, "every number must be at most 9"),
        (",".join("1" * 101), int, "has 101 numbers; 100 are the most"),
    ],
)
def test_lists_that_are_refused(text, kind, words):
    with pytest.raises(UserError) as caught:
        numbers("x", text, kind, 1, 9)
    assert words in one_line(caught.value)


# ---- every option ------------------------------------------------------------------------------------------------


def test_every_number_has_bounds_and_the_upper_one_a_reason():
    for item in items():
        rules = item.metadata
        if item.type in (int, float):
            own = item.name in ("microbatch", "num_head_channels")  # -1 or above 0: `resolve` checks it
            assert own or rules["minimum"] is not None or rules["above"] is not None, item.name
            assert rules["maximum"] is not None, item.name
            assert rules["why"] or rules["maximum"] <= 3, item.name


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_an_odd_value_of_any_option_is_read_or_refused_in_one_line(value):
    for item in items():
        try:
            read_value(item, value)
        except UserError as error:
            one_line(error)


@pytest.mark.parametrize("group", sorted({group for groups in EVERY.values() for group in groups}, key=str))
def test_the_rules_between_options_refuse_odd_values_in_one_line(group):
    """`resolve` and `complete` of the option classes, for texts, whose form only these know."""
    for item in dataclasses.fields(group):
        for value in ODD if item.type is str and not is_path(item) else ("nan", "9" * 30):
            try:
                options_from([group], {item.name: value})
            except UserError as error:
                one_line(error)


@pytest.mark.parametrize("value", [None, [], [1], {}, {"a": 1}, [[1]], [{}], "", 3.5, True, ["a", None]], ids=str)
def test_a_value_of_yaml_of_another_type_is_read_or_refused_in_one_line(value):
    for item in items():
        try:
            read = read_value(item, value)
        except UserError as error:
            one_line(error)
        else:
            assert type(read) is item.type


def test_a_value_that_no_parser_saw_is_checked_for_its_type():
    """As those of checkpoints are."""
    for item in items():
        for value in (None, [], {}, b"x", object(), "x" if item.type is not str else 3):
            with pytest.raises(UserError, match=f"^--{item.name} .*: must be "):
                check_value(item, value)
        check_value(item, item.default)


# ---- single rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words", "groups"),
    [
        ("--seed 1180591620717411303424", "must be at most 9223372036854775807: the generators", TRAIN),
        ("--seed 1180591620717411303424", "must be at most 9223372036854775807: the generators", SAMPLE),
        ("--diffusion_steps 2000000000", "must be at most 100000: the schedule", TRAIN),
        ("--image_size 100000", "must be at most 8192: at this side", TRAIN),
        ("--num_workers 1000000", "must be at most 512: each is a process", TRAIN),
        ("--num_ensemble 1000000000", "must be at most 10000: all members", SAMPLE),
        ("--batch_size 1000000", "must be at most 65536: the images", TRAIN),
        ("--channel_mult nan", "--channel_mult nan: holds a number that is not finite", TRAIN),
        ("--channel_mult 1,,2", "--channel_mult 1,,2: must be numbers", TRAIN),
        ("--channel_mult 1,1e9", "a level has at most 8192 channels", TRAIN),
        ("--channel_mult 1,1,1,1,1,1,1,1,1,1,1,1,1,1", "has 14 levels; 13 are the most", TRAIN),
        ("--num_channels 8192 --num_res_blocks 100", "would have more than 242 billion weights; 100 billion", TRAIN),
        ("--image_size 8192 --num_channels 512", "one feature map would take 137 GB; 64 GB are the most", TRAIN),
        ("--attention_resolutions=-3", "every number must be at least 1", TRAIN),
        ("--ema_rate 0.9,0.9", "names a rate twice", TRAIN),
        ("--ema_rate 0.9,nan", "not finite", TRAIN),
        ("--batch_size \uff13\uff12", "must be a whole number", TRAIN),
        ("--gpu_dev \u00b2", "must be the number of one GPU, mps or cpu", TRAIN),
        ("--sample_batch_size \u00b2", "must be auto or a number above 0", SAMPLE),
        ("--sample_batch_size 99999999999", "at most 65536", SAMPLE),
        ("--temperature 1e-300", "must be 0 or at least 0.001", SAMPLE),
        ("--scales 0.9,0.9", "names a scale twice", SAMPLE),
        ("--nsd_tolerance 1,1e9", "every number must be at most 10000", [EvalOptions]),
        ("--group_key a{99999999999999999999}", "is no regular expression", TRAIN),
    ],
)  # fmt: skip
def test_values_that_are_refused(line, words, groups):
    assert words in refused(line, groups)


@pytest.mark.parametrize("script", COMMANDS)
def test_an_empty_path_on_the_command_line_is_refused(script):
    paths = [item.name for item in fields_of(COMMANDS[script]).values() if is_path(item)]
    assert "out_dir" in paths and len(paths) > 1
    for name in paths:
        with pytest.raises(UserError, match=f"^--{name}: is empty"):
            parse("", COMMANDS[script], [f"--{name}", ""])


def test_an_empty_path_in_a_file_is_its_default_or_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("val_dir: ''\ndata_dir:\n")
    assert values(f"--config {path}")["val_dir"] == ""
    path.write_text("out_dir: ''\n")
    assert "--out_dir: is empty; name a folder, or leave it out for ./results/" in refused(f"--config {path}")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a\udcffb", "--out_dir a\\udcffb: is not in UTF-8"),
        ("a\nb", "--out_dir a\\nb: holds a line break"),
        ("a\0b", "holds a line break or another control character"),
        (" ", "--out_dir ' ': is blank"),
        ("x" * 256, "has a longer name than a file system allows"),
        ("x/" * 2000, "is a longer path than a file system allows"),
        ("/dev/zero", "is a pipe, socket or device"),
        ("s3://bucket/run", "cannot be on s3://; name a local path or one on gs:// or az://"),
        ("hf://OWNER/NAME", "--out_dir hf://OWNER/NAME: cannot be on hf://; name a local path or one on gs://"),
    ],
)
def test_paths_that_cannot_be(path, words):
    with pytest.raises(UserError) as caught:
        parse("", TRAIN, ["--out_dir", path])
    assert words in one_line(caught.value)


def test_the_hub_holds_models_alone():
    for name in ("init_from", "data_dir", "resume_checkpoint"):
        line = f"--{name} hf://OWNER/NAME"
        found = values(line)[name] if name == "init_from" else refused(line)
        assert found == "hf://OWNER/NAME" or "cannot be on hf://; name a local path or one on gs://" in found
    assert "a model on hf://" in refused("--model_path https://example.org/last.pt", SAMPLE)


def test_paths_that_can_be(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("no/such/folder", "with blank", "\u00e9\u00df\u4e2d", "x" * 255, "-", "pipe/below"):
        parse("", TRAIN, [f"--out_dir={tmp_path / name}"])


def test_a_list_in_yaml_is_for_options_that_list():
    item = fields_of(TRAIN)["channel_mult"]
    assert read_value(item, [1, 2.5, "3"]) == "1,2.5,3"
    for name, value in (("lr", [1]), ("out_dir", ["a", "b"]), ("version", ["v1"]), ("channel_mult", [[1], 2])):
        with pytest.raises(UserError, match=f"^--{name} .*: must be one value"):
            read_value(fields_of(TRAIN)[name], value)


def test_programs_meet_the_same_rules():
    with pytest.raises(UserError, match="^--seed 1180591620717411303424: must be at most"):
        options_from([DemoOptions], {"seed": 2**70})


def test_a_reason_follows_the_bound():
    item = dataclasses.make_dataclass("X", [("n", float, option(1.0, "help", maximum=1e9, why="so it is"))])
    with pytest.raises(UserError, match=r"^--n 2e9: must be at most 1e\+09: so it is$"):
        read_value(dataclasses.fields(item)[0], "2e9")
