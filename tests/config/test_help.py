"""Help: two screens of flags, all of them by --help_all, each once."""

import re
import shlex

import pytest
from helpers import GROUPS, TRAIN, help_of

from guided_diffusion.config.command_line import fields_of, parse
from guided_diffusion.config.config_file import read_config
from guided_diffusion.config.help import COMMON
from guided_diffusion.config.options import DiffusionOptions, ModelOptions
from guided_diffusion.config.recipe import recipe_file

ALL = "--help_all lists every flag, and says more of these"


def flags_of(text):
    """The names of the flags that a help explains, in order."""
    return re.findall(r"(?m)^  --(\w+)", text)


@pytest.mark.parametrize(("command", "name"), [("train", "segmentation_train"), ("sample", "segmentation_sample")])
def test_the_short_help_fits_two_screens_and_the_terminal(command, name, script, capsys, monkeypatch):
    assert 18 <= len(COMMON[command]) <= 24
    for width in (60, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        with pytest.raises(SystemExit):
            script(name, "--help")
        text = capsys.readouterr().out
        assert flags_of(text) == [*COMMON[command], "config"]
        assert text.endswith(f"\n{ALL}\n")
        assert max(map(len, text.partition("most people set")[2].splitlines())) <= width
    assert text.count("\n") <= 60


@pytest.mark.parametrize("name", ["segmentation_train", "segmentation_sample"])
def test_the_short_help_explains_every_flag_that_it_names(name, script, capsys):
    text = help_of(name, script, capsys, "--help").replace(ALL, "")
    assert set(re.findall(r"--(\w+)", text)) == set(flags_of(text))


@pytest.mark.parametrize("name", ["segmentation_eval", "check_data", "demo"])
def test_commands_with_few_flags_show_all_at_once(name, script, capsys):
    text = help_of(name, script, capsys, "--help")
    assert text == help_of(name, script, capsys, "--help-all") == help_of(name, script, capsys, "-h")
    assert "--help_all" not in text


@pytest.mark.parametrize("name", GROUPS)
def test_the_whole_help_names_every_flag_once(name, script, capsys):
    text = help_of(name, script, capsys)
    fields = fields_of(GROUPS[name])
    saved = fields_of([ModelOptions, DiffusionOptions]) if name == "segmentation_sample" else {}
    flags = [item for item in fields.values() if item.metadata["is_flag"]]
    explained = [item.name for item in flags if saved.get(item.name) is not item]
    assert not GROUPS[name] or sorted(flags_of(text.partition("Taken from")[0])) == sorted(
        [*explained, *(["config"] if not saved else [])]
    )
    for flag in explained:
        assert " ".join(fields[flag].metadata["help"].split()[:3]) in " ".join(text.split())
    assert "-dir" not in text.replace("--data-dir", "-dir")  # the other spelling parses, and is not shown


def test_help_begins_with_a_command_that_parses(script, capsys):
    for name, groups in GROUPS.items():
        text = help_of(name, script, capsys, "--help")
        words = shlex.split(text.partition("example:\n")[2].partition("\n\n")[0].replace("\\\n", " "))
        assert words[:2] == ["python", f"scripts/{name}.py"]
        if groups:
            parse("", groups, words[2:])


def test_help_shows_choices_and_what_is_needed(script, capsys):
    text = help_of("segmentation_sample", script, capsys)
    assert "--fuse {auto,staple,mean,vote}" in text and "--precision {auto,fp32,bf16,fp16} " in text
    needed = [line.split()[0] for line in text.splitlines() if line.endswith("(required)")]
    assert needed == ["--model_path", "--data_dir"]
    assert "(required)" in help_of("segmentation_eval", script, capsys)


def test_help_of_sampling_names_what_the_checkpoint_brings_in_one_block(script, capsys):
    text = help_of("segmentation_sample", script, capsys)
    block = text.partition("Taken from the checkpoint; accepted because published commands pass them.")[2]
    fields = fields_of([ModelOptions, DiffusionOptions])
    for name in [n for n, item in fields.items() if n != "diffusion_steps" and item.metadata["is_flag"]]:
        assert f"--{name}," in block.replace("--use_kl", "--use_kl,"), name
        assert not re.search(rf"(?m)^  --{name} [^-]", text), name
    assert "(default: the checkpoint's)" in text and "(default: by the checkpoint)" in text
    short = help_of("segmentation_sample", script, capsys, "--help")
    assert "--num_channels" not in short and "Taken from the checkpoint" not in short
    assert "--num_channels N" in help_of("segmentation_train", script, capsys, "--help")


def test_help_tells_the_defaults_of_the_default_recipe(script, capsys):
    text = " ".join(help_of("segmentation_train", script, capsys).split())
    for name, value in read_config(recipe_file("staged", "v2")).items():
        item = fields_of(TRAIN)[name]
        own = item.metadata["shown"] or item.default
        told = f"(default: {value} by --recipe staged, else {own})" if value != item.default else f"(default: {own})"
        assert any(told in text[found.start() :][:1500] for found in re.finditer(f"--{name} ", text)), name


def test_a_default_that_depends_on_something_else_says_on_what(script, capsys):
    sampling = " ".join(help_of("segmentation_sample", script, capsys, "--help").split())
    assert "(default: as the checkpoint was trained)" in sampling.partition("--tile ")[2].partition("--save_samples")[0]
    assert sampling.partition("--image_size N")[2].partition(" --")[0].endswith("(default: the checkpoint's)")
    training = " ".join(help_of("segmentation_train", script, capsys).split())
    assert "(default: 0.5 by --recipe staged, else 0.1 for x0 and v, 1 for eps)" in training
