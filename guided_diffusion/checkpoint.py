"""One self-describing file per checkpoint: written whole or not at all, and loaded without running code from it."""

import dataclasses
import hashlib
import pickle
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .config.options import ONLY_LEARNED_BY, DiffusionOptions, ModelOptions, without_removed
from .config.settings import Saved
from .data.classes import Classes
from .data.compatibility import trained_window
from .diffusion.gaussian_diffusion import build_diffusion
from .io.files import atomic_path, name_also
from .models.medsegdiff import build_model
from .models.sharding import load_whole
from .runtime.console import console
from .runtime.errors import UserError

FORMAT = "medsegdiff-checkpoint-1"


LABELS_OF_CONDITION = "condition_model.label_embedding.weight"  # which the first checkpoints of v2 lack


OLDER = {  # what a checkpoint that is older than an option was trained with
    "model": {
        "concat_features": False,
        "diffusion_channels": 0,
        "diffusion_level": 0,
    },
    "diffusion": {"logit_skip": "none", "class_activation": "sigmoid"},
    "train": {"augment": "none", "dice_steps": 0, "slices": "all", "crop": False},
}


@dataclass
class Checkpoint:
    """What a run is made of; plain types and tensors only.

    config: a dict of option values for each of "data", "model", "diffusion", "train"; "loader": what the data set's
    class `kept`.
    image_channels, class_names, label_names: what the data set said. step: optimizer steps taken.
    model: state dict. ema: one state dict (parameters alone) for each EMA rate, keyed by its text.
    optimizer, scaler, timestep_sampler: their state dicts, for resuming. validation: the best validation so far,
    "step" and "dice", and "cases", the names of what it was of; {} without one. stage_end: with --condition_steps -1
    the steps of the first stage, None before its end.
    """

    config: dict
    image_channels: int
    class_names: list
    label_names: list
    step: int
    model: dict
    ema: dict
    optimizer: dict = field(default_factory=dict)
    scaler: dict = field(default_factory=dict)
    timestep_sampler: dict = field(default_factory=dict)
    validation: dict = field(default_factory=dict)
    stage_end: int | None = None

    @property
    def classes(self):
        """The `classes.Classes` that it was trained on."""
        values = self.config.get("loader", {}).get("class_values", ())
        return Classes(tuple(self.class_names), tuple(map(tuple, values)))

    @property
    def first_stage(self):
        """The steps in which the condition model learned alone; None before their end, and without stages."""
        steps = self.config["train"].get("condition_steps", 0)
        steps = self.stage_end if steps < 0 else steps
        return steps if steps and steps <= self.step else None

    @property
    def has_learned_diffusion(self):
        """Whether training went beyond the stage in which the condition model learns alone."""
        steps = self.config["train"].get("condition_steps", 0)
        steps = self.stage_end if steps < 0 else steps
        return steps is not None and self.step > steps

    def saved(self, where):
        """What `settings.settle` takes of it. where: how messages name it."""
        data = self.config["data"] | {"ct_window": trained_window(self.config)}  # not what other data stand for
        return Saved(self.config | {"data": data}, where)

    def build(self, options=None):
        """The network (in training mode, with the not-averaged weights) and its diffusion."""
        options = options or ModelOptions(**self.config["model"])
        model = build_model(options, self.image_channels, len(self.class_names), len(self.label_names))
        load_whole(model, self.model)
        known = {name: value for name, value in self.config["diffusion"].items() if name not in ONLY_LEARNED_BY}
        return model, build_diffusion(DiffusionOptions(**known))

    def load_weights(self, model, weights):
        """Load into `model` the weights named by `--weights`: "ema" (the first rate), "model" or a rate's text."""
        if weights == "model":
            state = self.model
        else:
            rate = next(iter(self.ema)) if weights == "ema" else weights
            if rate not in self.ema:
                raise UserError(f"--weights {weights}: the checkpoint has {', '.join(['model', 'ema', *self.ema])}")
            state = {**self.model, **self.ema[rate]}
        model.load_state_dict(state)


def save_checkpoint(checkpoint, path):
    """Write the checkpoint to `path` (a temporary file, flushed and renamed). Raises OSError if that fails."""
    content = {"format": FORMAT, **{f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}}
    with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's zip writer hides a full disk behind its own error
                raise error.__context__ from None
            raise


def load_checkpoint(path, to_train=False):
    """Read a checkpoint onto the CPU.

    to_train: the training goes on from it, so that `config.ONLY_LEARNED_BY` counts too. Raises `UserError` for a
    missing file, a file that is no checkpoint of ours, and a checkpoint that used an option of `config.REMOVED`.
    It is read with `weights_only=True`: a pickle that holds code is refused, not run. Tensors are mapped to the file
    and read when they are used, so that sampling does not load the optimizer's.
    """
    path = Path(path)
    if path.is_dir():
        newest = newest_checkpoint(path)
        there = f"its newest checkpoint is {shlex.quote(str(newest))}" if newest else "without a checkpoint model*.pt"
        raise UserError(f"{path}: is a folder, {there}; name a file")
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    foreign = UserError(f"{path}: is no checkpoint of this program; train one with scripts/segmentation_train.py")
    with open(path, "rb") as file:
        if file.read(2) != b"PK":  # what torch.save writes is a zip file
            raise foreign
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than plain data, or is damaged, and was not loaded; use a checkpoint of this program"
        ) from error
    except Exception as error:  # damaged bytes raise nearly anything
        raise UserError(f"{path}: is no checkpoint, or a damaged one; copy it again or train anew") from error
    names = [f.name for f in dataclasses.fields(Checkpoint)]
    if isinstance(content, dict):
        content = {"validation": {}, "stage_end": None, **content}  # older ones lack these
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() >= set(names):
        raise foreign
    older = dict(OLDER)
    if LABELS_OF_CONDITION not in content["model"]:
        older["model"] = OLDER["model"] | {"condition_labels": False}
    who, keep = f"{path}: was trained with", () if to_train else ONLY_LEARNED_BY
    for key, values in content["config"].items():
        content["config"][key] = without_removed(older.get(key, {}) | values, who, keep)
    return Checkpoint(**{name: content[name] for name in names})


def file_hash(path):
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checkpoint_path(out_dir, step):
    """Where the checkpoint of a step lies: OUT/model000500.pt."""
    return Path(out_dir) / f"model{step:06d}.pt"


def newest_checkpoint(out_dir):
    """The checkpoint of the highest step in `out_dir`, or None."""
    name = newest_name(path.name for path in Path(out_dir).glob("model*.pt"))
    return name and Path(out_dir) / name


def newest_name(names):
    """The name of the checkpoint of the highest step among these file names, or None."""
    found = names_by_step(names)
    return found[-1] if found else None


def names_by_step(names):
    """Those of these file names that are checkpoints by their step, model000500.pt, in its order."""
    return sorted((name for name in names if re.fullmatch(r"model\d+\.pt", name)), key=step_of)


def step_of(path):
    """The step of a checkpoint by its name, model000500.pt."""
    return int(re.search(r"model(\d+)\.pt$", str(path))[1])


# ---- The checkpoints of a run: model<step>.pt, how many of them are kept, last.pt (the newest) and best.pt ----------


BEST, LAST = "best.pt", "last.pt"


class CheckpointFolder:
    """Writes the checkpoints of one run to its `WorkFolder`; of several processes the first one does.

    keep: how many of the newest model<step>.pt are kept; 0: all. best.pt and last.pt are never removed.
    A blob store that fails is a warning and does not end the run: the next call pushes what it lacks.
    """

    def __init__(self, folder, keep=0):
        self.folder, self.keep = folder, keep

    def save(self, checkpoint):
        """Write OUT/model<step>.pt, whole or not at all, and let last.pt be it. Returns where it is, in words."""
        path = checkpoint_path(self.folder.path, checkpoint.step)
        save_checkpoint(checkpoint, path)
        name_also(path, self.folder.path / LAST)
        pushed = self.folder.try_push()
        if self.keep and pushed:  # nothing is given up while the store lacks something
            names = names_by_step(self.folder.names())
            older = [name for name in names if step_of(name) <= checkpoint.step]
            self.folder.try_remove(older[: -self.keep])
        return self.folder.shown(path.name) if pushed else path

    def save_best(self, checkpoint, saved):
        """Let best.pt be this checkpoint. saved: whether `save` has written it just now."""
        path = self.folder.path / BEST
        if saved:
            name_also(checkpoint_path(self.folder.path, checkpoint.step), path)
        else:
            save_checkpoint(checkpoint, path)
        self.folder.try_push()

    def has(self, step):
        """Whether the folder has this step's checkpoint: a run may go on in another folder than it began in."""
        return checkpoint_path("", step).name in self.folder.names()

    def best_so_far(self, start):
        """`Checkpoint.validation` of the folder's best.pt; {} where there is none.

        start: the checkpoint that is gone on from, or None. Where a kill came between writing it and best.pt, best.pt
        is made up for.
        """
        found, own = self._validation_of_best(start), start.validation if start else {}
        if not own or own["step"] != start.step:
            return found
        path = checkpoint_path(self.folder.path, start.step)
        if path.exists() and (found.get("cases") != own["cases"] or found["dice"] < own["dice"]):
            name_also(path, self.folder.path / BEST)
            return own
        return found

    def told_best(self, validation):
        """What is told at the end of best.pt, whose `Checkpoint.validation` this is, or "" for {}."""
        if not validation:
            return ""
        step, dice = validation["step"], validation["dice"]
        return f"; {self.folder.shown(BEST)} is of step {step}, validation Dice {dice:.3f}"

    def _validation_of_best(self, start):
        if BEST not in self.folder.names():
            return {}
        path = self.folder.path / BEST
        if not path.exists():  # it is in a store; what is gone on from knows it too
            return start.validation if start else {}
        try:
            return load_checkpoint(path).validation
        except UserError as error:
            console().warning(f"warning: {error}; the next validation makes a new one")
            return {}
