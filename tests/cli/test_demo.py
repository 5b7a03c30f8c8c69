"""The demo: its summary, continuing after an interruption, and running it again."""

import json
import os
import re
import shlex
import signal

import pytest
from conftest import TINY, files, finish

from guided_diffusion.checkpoint import newest_checkpoint
from guided_diffusion.cli import demo as module
from guided_diffusion.cli.verbs import demo_main
from guided_diffusion.config.demo_options import DemoOptions
from guided_diffusion.data.phantoms import write_isic
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.runtime.program import VERB_SCRIPTS


@pytest.fixture
def demo(script, monkeypatch):
    """The demo's module, made tiny. Its scripts run in this process; `demo.calls` are their names."""

    class Task(module.Task):
        def write(self, folder, seed):
            write_isic(folder, num_train=4, num_test=3, size=32, seed=seed)

    def call(name, arguments):
        module.calls.append(name)
        script(VERB_SCRIPTS[name].removesuffix(".py"), shlex.split(arguments))

    sampling = "--num_ensemble 2 --diffusion_steps 2 --dpm_solver True --save_samples True"
    tasks = (Task("ISIC", "Train", "Test", steps=4, minutes=5, debug=False),)
    changed = {"calls": [], "TASKS": tasks, "MODEL": TINY, "SAMPLING": sampling, "call": call}
    for name, value in changed.items():
        monkeypatch.setattr(module, name, value, raising=name != "calls")
    return module


ALL = ["train", "sample", "evaluate"]


def test_a_finished_demo_says_so_and_shows_its_summary(demo, tmp_path, capsys):
    line = ["--out_dir", str(tmp_path / "demo")]
    demo_main(line)
    summary = capsys.readouterr().out.rpartition("ISIC: Dice")[2]
    for name in ("best grey-value threshold", "default answer, in one pass", "one member", "ensemble of 5 members"):
        assert re.search(rf"{name}.* 0\.\d{{3}}\n", summary), name
    assert demo.calls == ALL and "cut short" not in summary
    before = files(tmp_path)
    demo_main(line)
    out = capsys.readouterr().out
    assert demo.calls == ALL and files(tmp_path) == before
    assert out.partition("ISIC: Dice")[2].startswith(summary.partition("\n\n")[0])
    assert f"finished before; to repeat it, remove {tmp_path / 'demo'} or choose another --out_dir" in out
    (tmp_path / "demo" / "ISIC_results" / "summary.json").unlink()
    demo_main(line)
    assert demo.calls == ALL + ALL[1:] and files(tmp_path) == before


@pytest.mark.parametrize("where", ALL)
def test_an_interrupted_demo_goes_on(demo, tmp_path, monkeypatch, where):
    call = demo.call

    def interrupted(name, arguments):
        call(name, arguments)
        if name == where:
            raise KeyboardInterrupt

    monkeypatch.setattr(demo, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo_main(["--out_dir", str(tmp_path / "demo")])
    masks = {path: path.stat().st_mtime_ns for path in tmp_path.glob("demo/ISIC_results/masks/*")}
    monkeypatch.setattr(demo, "call", call)
    demo.calls.clear()
    demo_main(["--out_dir", str(tmp_path / "demo")])
    assert demo.calls == (ALL if where == "train" else ALL[1:])
    assert {path: path.stat().st_mtime_ns for path in masks} == masks and (masks or where == "train")
    assert [path.name for path in tmp_path.glob("demo/ISIC_run/model*.pt")] == ["model000004.pt"]


def test_a_demo_made_with_other_options_is_refused(demo, refusal, tmp_path):
    demo_main(["--out_dir", str(tmp_path), "--speed", "0.5", "--data", "ISIC"])
    demo_main(["--out_dir", str(tmp_path), "--speed", "0.5"])  # both: here there is no other
    for flags, words in [("--speed 1", "--speed 0.5"), ("--speed 0.5 --seed 3", "--seed 0")]:
        line = refusal("demo", ["--out_dir", tmp_path, flags])
        assert f"{tmp_path}: holds a demo made with {words}; choose another --out_dir" in line


def test_a_demo_cut_short_says_so(demo, tmp_path, capsys, monkeypatch):
    (task,) = demo.TASKS
    monkeypatch.setattr(demo, "TASKS", (type(task)("ISIC", "Train", "Test", steps=100000, minutes=0.01, debug=False),))
    demo_main(["--out_dir", str(tmp_path)])
    out = capsys.readouterr().out
    match = re.search(
        r"cut short: (\d+) of 100000 training steps in 0.01 minutes; .* add --speed (\S+) and another", out
    )
    done = int(newest_checkpoint(tmp_path / "ISIC_run").stem.removeprefix("model"))
    assert int(match[1]) == done and float(match[2]) == pytest.approx(100000 / done, abs=0.1)


def test_ctrl_c_in_the_demo_saves_what_is_trained(process, tmp_path):
    child = process("demo", ["--out_dir", tmp_path / "demo", "--data ISIC"])
    bar = ""
    while not re.search(r"training:[^\r]* step=[1-9]", bar):
        bar += (character := child.stderr.read(1))
        assert character, bar  # the process has ended
    os.killpg(child.pid, signal.SIGINT)
    ended = finish(child)
    assert ended.status == 130 and ended.messages[-1:] == ["interrupted"], ended.err
    assert "Traceback" not in ended.err and "the same command continues from here" in ended.out
    assert newest_checkpoint(tmp_path / "demo" / "ISIC_run") is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([], "the file must be an object {...}, not a list"),
        ({"tasks": None}, '"tasks" must be an object {...}, not null'),
        ({"tasks": {"ISIC": []}}, "must be an object {...}, not a list"),
        ({"tasks": {"ISIC": {"checkpoint": "../other.pt", "steps": 4}}}, "must be text matching regex"),
        ({"tasks": {"ISIC": {"checkpoint": "model000004.pt", "steps": "4"}}}, "must be a whole number, not text"),
        ({"tasks": {"ISIC": {"threshold": 0.5}}}, 'has no "'),
        ({"made_with": 3}, '"made_with" must be an object {...}, not a whole number'),
    ],
)
def test_a_record_of_wrong_types_is_refused(demo, tmp_path, change, words):
    options = DemoOptions(out_dir=str(tmp_path / "demo"))
    record = module.Record(tmp_path / "demo", options)
    value = {**record.content, **change} if isinstance(change, dict) else change
    record.path.write_text(json.dumps(value))
    with pytest.raises(UserError) as caught:
        module.Record(tmp_path / "demo", options)
    assert str(caught.value).startswith(f"{record.path}: ") and words in str(caught.value)
    assert json.loads(record.path.read_text()) == value
