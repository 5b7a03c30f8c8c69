"""Services that collect figures, by stand-ins for their libraries."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from conftest import TINY

from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training.log import RunLog
from guided_diffusion.training.trackers import Tracker, check_tracker, sent_config

CONFIG = {
    "data": {"data_dir": "/home/ann/data", "data_name": "/home/ann/my.py:Mine", "cache_dir": "auto", "classes": "a=1"},
    "model": {"version": "v2"},
    "diffusion": {"objective": "x0"},
    "train": {"lr": 0.1, "out_dir": "/home/ann/runs/x", "val_dir": "/home/ann/val", "resume_checkpoint": "/home/y.pt"},
    "device": {"precision": "fp32"},
    "loader": {"ct_window": None},
}


class StandIn(ModuleType):
    """Remembers the calls of its functions; `failing` ones raise."""

    def __init__(self, name, failing=()):
        super().__init__(name)
        self.calls, self.failing = [], failing

    def __getattr__(self, function):
        if function.startswith("__"):
            raise AttributeError(function)

        def call(*args, **kwargs):
            if function in self.failing:
                raise ConnectionError(f"no route\nto {function}")
            self.calls.append((function, *args, kwargs))
            name = kwargs.get("run_id") or kwargs.get("name") or kwargs.get("run_name") or ""
            name = name if " of " in name else f"{name} of {self.__name__}"
            return SimpleNamespace(name=name, info=SimpleNamespace(run_id=name))

        return call


@pytest.fixture
def library(monkeypatch):
    def put(name, failing=()):
        monkeypatch.setitem(sys.modules, name, StandIn(name, failing))
        return sys.modules[name]

    return put


def sent(name, library):
    """The (config, metrics) that a service got, and its functions in their order."""
    if name == "mlflow":
        config = next(call[1] for call in library.calls if call[0] == "log_params")
        return config, [(call[2]["step"], call[1]) for call in library.calls if call[0] == "log_metrics"]
    config = library.calls[0][1]["config"]
    return config, [(call[2]["step"], call[1]) for call in library.calls if call[0] == "log"]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_config_and_figures_go_there(tmp_path, library, name):
    got = library(name)
    (tmp_path / "first").mkdir()
    log = RunLog(tmp_path, tracker=Tracker(name, tmp_path / "first", CONFIG))
    log.write(1, {"loss": 0.5, "grad_norm": float("inf")})
    log.write(2, {"loss": 0.25, "val_dice": float("nan")})
    log.close()
    config, figures = sent(name, got)
    assert figures == [(1, {"loss": 0.5}), (2, {"loss": 0.25})]
    assert config["train.lr"] in (0.1, "0.1") and config["data.data_name"] == "my.py:Mine"
    assert "ann" not in str(got.calls) and "first" in str(got.calls) and "medsegdiff" in str(got.calls)
    assert got.calls[-1][0] == {"mlflow": "end_run"}.get(name, "finish")


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_resumed_run_goes_on_in_the_same_run(tmp_path, library, name):
    got, key = library(name), {"wandb": "id", "mlflow": "run_id", "trackio": "name"}[name]
    (tmp_path / "track.json").write_text('{"other": "x"}')
    begin = {"mlflow": "start_run"}.get(name, "init")
    for goes_on in (False, True, True, False):
        Tracker(name, tmp_path, CONFIG, goes_on).close()
    first, second, third, anew = [call[-1] for call in got.calls if call[0] == begin]
    known = first["id"] if name == "wandb" else f"{tmp_path.name} of {name}"
    assert second[key] == third[key] == known and anew.get(key) != known
    if name == "mlflow":  # which refuses other values of a run's parameters
        assert [call[0] for call in got.calls].count("log_params") == 2
    if name == "trackio":
        assert [call["resume"] for call in (first, second, anew)] == ["never", "allow", "never"]


def test_no_folder_of_this_machine_is_sent():
    values = sent_config(CONFIG)
    assert not any("/" in str(value) for value in values.values())
    assert values["model.version"] == "v2" and values["data.cache_dir"] == "auto" and "train.out_dir" not in values


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_service_that_fails_is_one_warning(tmp_path, library, capsys, failing):
    got = library("wandb", (failing,))
    log = RunLog(tmp_path, tracker=Tracker("wandb", tmp_path, CONFIG))
    for step in (1, 2, 3):
        log.write(step, {"loss": 0.5})
    log.close()
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and warnings[0].startswith("warning: --track wandb: could not ")
    assert f"(no route to {failing}); training goes on without it" in warnings[0]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    assert len([call for call in got.calls if call[0] == "log"]) == (3 if failing == "finish" else 0)


def test_a_service_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--track wandb: needs wandb, which is not installed; pip install wandb"):
        check_tracker("wandb")
    check_tracker("")


def test_a_training_sends_its_log(script, pictures, tmp_path, library):
    got = library("trackio")
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run7", TINY, "--max_steps 2"]
    script("segmentation_train", [*line, "--track trackio"])
    config, figures = sent("trackio", got)
    assert [step for step, _ in figures] == [1, 2] and figures[0][1]["loss"] > 0 and config["train.track"] == "trackio"
    assert got.calls[0][1]["name"] == "run7" and str(tmp_path) not in str(got.calls)
