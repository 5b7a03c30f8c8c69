"""Services that collect the figures of runs, beside log.jsonl and TensorBoard: wandb, mlflow and trackio."""

import importlib
import importlib.util
import math
import os
import uuid
from pathlib import Path

from ..config.places import without_folders
from ..io.escaping import is_place, place_name
from ..io.files import write_json
from ..io.texts import read_json
from ..runtime.console import console
from ..runtime.errors import UserError

PROJECT = "medsegdiff"
# Of mlflow, whose own defaults let a run wait for minutes where its server does not answer.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
GROUPS = ("data", "model", "diffusion", "train", "device")  # of options, which are sent
LONGEST_PARAMETER = 500  # letters, mlflow's limit
KNOWN_RUNS = "track.json"  # in the run's folder: {service: what it calls the run}


class _Wandb:
    """A run of wandb. known: the `id` of the run that goes on, "" for a new one."""

    def __init__(self, library, name, config, known=""):
        self.library, self.id = library, known or uuid.uuid4().hex
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        library.init(project=project, name=name, config=config, id=self.id, resume="allow")

    def write(self, step, values):
        self.library.log(values, step=step)

    def close(self):
        self.library.finish()


class _Trackio(_Wandb):
    """A run of trackio, which has the functions of wandb and knows a run by its name."""

    def __init__(self, library, name, config, known=""):
        self.library = library
        project, resume = os.environ.get("WANDB_PROJECT", PROJECT), "allow" if known else "never"
        self.id = library.init(project=project, name=known or name, config=config, resume=resume).name


class _Mlflow:
    """A run of mlflow. known: as of `_Wandb`; its parameters, which may not change, stay those of its beginning."""

    def __init__(self, library, name, config, known=""):
        self.library = library
        library.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        self.id = library.start_run(**({"run_id": known} if known else {"run_name": name})).info.run_id
        if not known:
            library.log_params({key: str(value)[:LONGEST_PARAMETER] for key, value in config.items()})

    def write(self, step, values):
        self.library.log_metrics(values, step=step)

    def close(self):
        self.library.end_run()


TRACKERS = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}


def check_tracker(name):
    """Raise `UserError` for a service of `--track` whose library is not installed; "" is none."""
    if not name:
        return
    try:
        is_there = importlib.util.find_spec(name) is not None
    except ValueError:  # a module without a specification, which is loaded already
        is_there = True
    if not is_there:
        raise UserError(f"--track {name}: needs {name}, which is not installed; pip install {name}")


class Tracker:
    """Sends a run's config and figures to the service `name`, one of `TRACKERS`.

    folder: the run's, after which it is called there. config: the run's options by group, of which no folder is sent.
    goes_on: whether the run was resumed; it then goes on there too, if `KNOWN_RUNS` knows it. The service may fail at
    any time, as without a network: one warning says so, and the training goes on without it.
    """

    def __init__(self, name, folder, config, goes_on=False):
        self.name, self.run, self.folder = name, None, Path(folder)
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        self.run = self._try("begin the run", lambda: self._begin(sent_config(config), goes_on))

    def _begin(self, config, goes_on):
        file = self.folder / KNOWN_RUNS
        known = read_json(file, dict[str, str]) if goes_on and file.exists() else {}
        library, name = importlib.import_module(self.name), self.folder.resolve().name
        run = TRACKERS[self.name](library, name, config, known.get(self.name, ""))
        write_json(file, known | {self.name: run.id})
        return run

    def write(self, step, values):
        """Send one step's values, {name: float}, without those that are not finite."""
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        if self.run is not None:
            self._try("send figures", lambda: self.run.write(step, finite))

    def close(self):
        """End the run there."""
        if self.run is not None:
            self._try("end the run", self.run.close)

    def _try(self, what, action):
        """The action's result; None, after a warning and the end of all sending, where it raises."""
        try:
            return action()
        except Exception as error:  # services raise nearly anything
            self.run = None
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            console().warning(f"warning: --track {self.name}: could not {what} ({reason}); training goes on without it")
            return None


def sent_config(config):
    """The options of a run as one dict {"train.lr": 0.0001, ...}, without the folders of this machine."""
    groups = without_folders(config)
    values = {f"{group}.{name}": value for group in GROUPS for name, value in groups.get(group, {}).items()}
    return {name: place_name(value) if is_place(value) else value for name, value in values.items()}
