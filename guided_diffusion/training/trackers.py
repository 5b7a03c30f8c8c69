"""Services that collect the figures of runs, beside log.jsonl and TensorBoard: wandb, mlflow and trackio."""

import importlib
import importlib.util
import math
import os

from ..config.places import without_folders
from ..io.escaping import is_place, place_name
from ..runtime.console import console
from ..runtime.errors import UserError

PROJECT = "medsegdiff"
# Of mlflow, whose own defaults let a run wait for minutes where its server does not answer.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
GROUPS = ("data", "model", "diffusion", "train", "device")  # of options, which are sent
LONGEST_PARAMETER = 500  # letters, mlflow's limit


class _Wandb:
    """A run of wandb, or of trackio, which has the same functions."""

    def __init__(self, library, name, config):
        self.library = library
        library.init(project=os.environ.get("WANDB_PROJECT", PROJECT), name=name, config=config)

    def write(self, step, values):
        self.library.log(values, step=step)

    def close(self):
        self.library.finish()


class _Mlflow:
    """A run of mlflow."""

    def __init__(self, library, name, config):
        self.library = library
        library.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        library.start_run(run_name=name)
        library.log_params({key: str(value)[:LONGEST_PARAMETER] for key, value in config.items()})

    def write(self, step, values):
        self.library.log_metrics(values, step=step)

    def close(self):
        self.library.end_run()


TRACKERS = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Wandb}


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

    run_name: how the run is called there. config: the run's options by group, of which no folder is sent. The service
    may fail at any time, as without a network: one warning says so, and the training goes on without it.
    """

    def __init__(self, name, run_name, config):
        self.name, self.run = name, None
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        self.run = self._try("begin the run", lambda: self._begin(run_name, sent_config(config)))

    def _begin(self, run_name, config):
        return TRACKERS[self.name](importlib.import_module(self.name), run_name, config)

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
