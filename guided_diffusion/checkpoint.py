"""Checkpoints: self-describing files, written whole or not at all and loaded without running code from them."""

import dataclasses
import hashlib
import math
import os
import pickle
import re
import shlex
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .checkpoint_schema import OtherVersionError, check_content, check_plain_values, saved_diffusion
from .config.options import ModelOptions
from .config.places import without_folders
from .config.settings import Saved
from .data.classes import Classes
from .data.compatibility import trained_window
from .exported import NEEDED, SETTINGS, is_exported, read_exported
from .io.archives import DamagedArchive, check_records, file_hash
from .io.files import atomic_path, name_also
from .io.hub import fetch_from_hub, is_on_hub
from .io.storage import cached, is_remote, is_stored, join
from .io.texts import shown
from .models.medsegdiff import build_model
from .models.saved_weights import named_tensors
from .models.sharding import load_whole
from .runtime.console import console
from .runtime.errors import UserError
from .runtime.extras import MissingLibraryError
from .runtime.program import command_name
from .runtime.version import VERSION

FORMAT, OLD_FORMAT = "medsegdiff-checkpoint-2", "medsegdiff-checkpoint-1"  # the old one names folders and cases
BEST, LAST, STAGE = "best.pt", "last.pt", "stage1.pt"
PICKLE = "data.pkl"
ALLOCATING = re.compile(rb"c(builtins|__builtin__)\nbytearray\n|ctorch\._utils\n_rebuild_device_tensor_\w+\n")
LARGEST_PICKLE = {PICKLE: 16 << 20}  # bytes of all but the tensors; torch reads a MB of them in a second


LONGEST_REASON = 300  # characters of what is wrong with a file's content


@dataclass
class Checkpoint:
    """The state of a run, in plain types and tensors only.

    config: a dict of option values for each of "data", "model", "diffusion", "train"; "loader": the attributes that the
    data set's class lists in `kept`; "digests": of folders (see `config.places`). image_channels, class_names,
    label_names: from the data set. step: optimizer steps taken. model: state dict. ema: {rate as text: state dict of
    the averaged parameters}. optimizer, scaler, timestep_sampler: their state dicts, for resuming. validation: the best
    validation so far, {"step", "log_loss", "cases" (the `names_digest` of their names), perhaps "dice"}; {} without
    one. stage_end: with --condition_steps -1 the steps of the first stage, None before its end. decayed: with
    --lr_anneal_steps -1 the share of its stage's decay that has passed, see `Stages.decay`.
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
    decayed: float = 0.0

    @property
    def classes(self):
        """The `Classes` that the network was trained on."""
        values = self.config.get("loader", {}).get("class_values", ())
        return Classes(tuple(self.class_names), tuple(map(tuple, values)))

    @property
    def first_stage(self):
        """The number of steps in which the condition model learned alone; None before their end and without stages."""
        steps = self._condition_steps
        return steps if steps and steps <= self.step else None

    @property
    def has_learned_diffusion(self):
        """Whether training went beyond the stage in which the condition model learns alone."""
        steps = self._condition_steps
        return steps is not None and self.step > steps

    @property
    def _condition_steps(self):
        """The steps of the first stage; 0 without stages, None if --condition_steps -1 has not ended it yet."""
        steps = self.config["train"].get("condition_steps", 0)
        return self.stage_end if steps < 0 else steps

    def saved(self, where):
        """The `Saved` options for `settings.settle`. where: the checkpoint's name in messages."""
        data = self.config["data"] | {
            "ct_window": trained_window(self.config)
        }  # training's, not one that other data imply
        return Saved(self.config | {"data": data}, where)

    def build(self, options=None):
        """The network, in training mode and with the weights that are not averaged, and its `GaussianDiffusion`."""
        options = options or ModelOptions(**self.config["model"])
        model = build_model(options, self.image_channels, len(self.class_names), len(self.label_names))
        load_whole(model, self.model)
        return model, saved_diffusion(self.config["diffusion"])

    def weights(self, which):
        """What `which` stands for, "model" or a rate as text, and the state dict of these weights.

        which: the value of --weights, "ema" (the first rate), "model" or a rate as text. Raises `UserError` for a rate
        that the checkpoint lacks.
        """
        if which == "model":
            return which, self.model
        rate = next(iter(self.ema)) if which == "ema" else which
        if rate not in self.ema:
            raise UserError(f"--weights {which}: the checkpoint has {', '.join(['model', 'ema', *self.ema])}")
        return rate, {**self.model, **self.ema[rate]}

    def load_weights(self, model, weights):
        """Load weights into `model`; see `weights`, also for the error."""
        model.load_state_dict(self.weights(weights)[1])


@dataclass
class ExportedModel(Checkpoint):
    """An exported model (see `exported`), which has one set of weights.

    exported_as: what they are: "model", or the decay rate of an average as text.
    """

    exported_as: str = "model"

    def weights(self, which):
        """As of a checkpoint; "ema" stands for the only weights."""
        if which not in ("ema", self.exported_as):
            raise UserError(f"--weights {which}: the exported model has only {self.exported_as}; leave it out")
        return self.exported_as, self.model


def save_checkpoint(checkpoint, path):
    """Write the checkpoint to `path`, by a temporary file that is flushed and renamed. Raises OSError if that fails.

    The file names the version that wrote it, but no folder and no case (see `without_folders`).
    """
    content = {name: getattr(checkpoint, name) for name in _checkpoint_names()}
    content |= {"format": FORMAT, "written_by": VERSION, "config": without_folders(checkpoint.config)}
    with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's zip writer hides a full disk behind a RuntimeError
                raise error.__context__ from None
            raise


def load_checkpoint(path, to_train=False, *, where="", remedy=""):
    """Read a checkpoint onto the CPU, after a check of every byte by its checksum and of all content.

    path: a file, a run's folder, an exported model's folder or one on the Hub (see `checkpoint_file`).
    to_train: the checkpoint is to be trained further, so that `ONLY_LEARNED_BY` and the optimizer's state matter too.
    where: the file's name in messages, such as "--model_path last.pt"; "": the path. remedy: what to do about a damaged
    file. Raises `UserError` for a missing file, a file that is no checkpoint of this program, a damaged or changed one,
    and a checkpoint that used a `REMOVED` option. Tensors are mapped to the file. Checksums take 0.3 s per GB.
    """
    where = where or str(path)
    path = Path(checkpoint_file(path, where))
    if path.is_dir():
        if to_train:
            raise UserError(
                f"{where}: is an exported model, without an optimizer's state; begin a new run with it, by --init_from"
            )
        content, exported_as = read_exported(path, where)
        return ExportedModel(**content, exported_as=exported_as)
    content, records = _read_content(path, where, remedy)
    try:
        check_content(content, to_train)
        _check_storages(content, records)
    except (OtherVersionError, MissingLibraryError) as error:
        raise UserError(f"{where}: {error}") from None
    except UserError as error:
        reason = shown(str(error), LONGEST_REASON)  # with names and values from the file
        raise UserError(f"{where}: {reason}; {remedy or advice(path, 'use an unchanged copy of it')}") from None
    best = content["validation"]
    if isinstance(best.get("cases"), list):  # as in older checkpoints
        content["validation"] = best | {"cases": names_digest(best["cases"])}
    return Checkpoint(**{name: content[name] for name in _checkpoint_names()})


def advice(path, first="copy it again"):
    """What to do about a checkpoint that cannot be used: `first`, or take the one before it where there is one."""
    path = Path(path)
    others = names_by_step(other.name for other in path.parent.glob("model*.pt"))
    if re.fullmatch(r"model\d+\.pt", path.name):
        others = [name for name in others if step_of(name) < step_of(path)]
    others = [name for name in others if not os.path.samefile(path, path.parent / name)]  # last.pt is one of them
    return first + (f", or use the checkpoint before it, {others[-1]}" if others else " or train anew")


def _read_content(path, where, remedy):
    """The dict in a checkpoint's file, with all names of `Checkpoint`, and the file's `ArchiveRecord`s.

    It is read with `weights_only=True`: a pickle that holds code is refused, not run.
    """
    if not path.is_file():
        raise UserError(f"{where}: no such file; a run writes last.pt and model*.pt into its --out_dir")
    if not path.stat().st_size:
        raise UserError(f"{where}: is empty; {remedy or advice(path)}")
    foreign = UserError(
        f"{where}: is no checkpoint of this program; {remedy or 'train one with ' + command_name('train')}"
    )
    with open(path, "rb") as file:
        if file.read(2) != b"PK":  # torch.save writes a zip file
            raise foreign
    try:
        records = check_records(path, LARGEST_PICKLE)
    except DamagedArchive as error:
        what = f"{_name_of(path, error.record)}: " if error.record else ""
        raise UserError(f"{where}: is damaged, or no checkpoint ({what}{error}); {remedy or advice(path)}") from error
    try:
        _check_pickles(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on kinds of tensor that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{where}: holds more than plain data, or is damaged, and was not loaded; "
            f"{remedy or 'use a checkpoint of this program'}"
        ) from error
    except Exception as error:  # damaged bytes raise nearly anything
        raise UserError(f"{where}: is no checkpoint, or a damaged one; {remedy or advice(path)}") from error
    kind = content.get("format") if isinstance(content, dict) else None
    if kind not in (FORMAT, OLD_FORMAT):
        if isinstance(kind, str) and re.fullmatch(r"medsegdiff-checkpoint-\d{1,9}", kind):
            version = content.get("written_by")
            which = f"version {version}" if isinstance(version, str) and version.isprintable() else "a version"
            raise UserError(f"{where}: was written by {which:.40}, newer than this one, {VERSION}: use that version")
        raise foreign
    return {"validation": {}, "stage_end": None, "decayed": 0.0, **content}, records  # older checkpoints lack these


def _check_pickles(path):
    """Raise `pickle.UnpicklingError` for a pickle that names a function of `ALLOCATING`.

    torch calls these even with `weights_only`, and a few bytes can ask them for any amount of memory.
    """
    with zipfile.ZipFile(path) as archive:
        for item in archive.infolist():
            if item.filename.endswith(PICKLE) and (found := ALLOCATING.search(archive.read(item))):
                raise pickle.UnpicklingError(f"names {found[0]}")


def _check_storages(content, records):
    """Raise `UserError` unless the tensors in `content`, mapped to the file, cover exactly its records of tensors.

    The pickle says how long a tensor's numbers are. If it says too much, torch goes on reading in the next records, and
    a small file could claim any amount of memory.
    """
    stored = [tensor.untyped_storage() for _, tensor in named_tensors(content)]
    found = sorted({(storage.data_ptr(), storage.nbytes()) for storage in stored if storage.nbytes()})
    wanted = [(item.start, item.size) for item in records if item.size and re.search(r"/data/\d+$", item.name)]
    first, begin = min(found)[0], min(wanted, default=(0, 0))[0]
    if [(place - first, size) for place, size in found] != [(place - begin, size) for place, size in sorted(wanted)]:
        raise UserError("its tensors claim other bytes than those that its records hold")


def _name_of(path, record):
    """The name of a damaged record for a message: that of its tensor where the rest of the file can be read."""
    found = re.fullmatch(r"[^/]+/data/(\d{1,9})", record)
    if not found:
        return record
    names = {}  # by the place of the tensor's data in memory; torch numbers records in the order of the tensors
    try:
        _check_pickles(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        check_plain_values(content)
        for name, tensor in named_tensors(content):
            names.setdefault(tensor.untyped_storage().data_ptr(), name)
        return f"the tensor {list(names.values())[int(found[1])]}"
    except Exception:  # the name is only a help
        return record


def names_digest(names):
    """SHA-256, in hexadecimal, of a set of case names: equal for equal sets, and naming none."""
    return hashlib.sha256("\0".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()


def _log_loss(validation):
    """The log loss of the best validation; infinite for one up to version 0.4.0, which has only a Dice."""
    return validation.get("log_loss", math.inf)


def _checkpoint_names():
    return [item.name for item in dataclasses.fields(Checkpoint)]


def checkpoint_digest(path):
    """SHA-256, in hexadecimal, of a checkpoint that `load_checkpoint` has read from `path`.

    Of an exported model it is that of config.json, which holds the sum of the weights.
    """
    file = Path(checkpoint_file(path if is_on_hub(path) else cached(path)))
    return file_hash(file / SETTINGS if file.is_dir() else file)


def checkpoint_path(out_dir, step):
    """Where the checkpoint of a step lies: OUT/model000500.pt."""
    return Path(out_dir) / f"model{step:06d}.pt"


def checkpoint_file(path, where="", names=(BEST, LAST)):
    """The checkpoint that `path` names: a file itself; of a run's folder the first of `names` that it has; an exported
    model's folder itself.

    path: local or on gs:// or az://; a remote one counts as a file where its name ends in .pt. hf://OWNER/NAME is an
    exported model, which is fetched. Returns a `Path`, or a str of a remote one. where: the path's name in messages,
    such as "--model_path runs/first"; "": the path. Raises `UserError` for a folder without any of these. A path that
    does not exist is returned, for `load_checkpoint` to refuse.
    """
    if is_on_hub(path):
        folder = fetch_from_hub(path, NEEDED)
        if not is_exported(folder):
            raise UserError(f"{where or path}: has no {SETTINGS} of a model that this program exported")
        return folder
    path, is_far = join(path), is_remote(path)
    if str(path).endswith(".pt") if is_far else not path.is_dir():
        return path
    for name in names:
        file = join(path, name)
        if is_stored(file) if is_far else file.is_file():
            return file
    if not is_far and is_exported(path):
        return path
    newest = None if is_far else newest_checkpoint(path)
    there = f"; its newest checkpoint is {shlex.quote(str(newest))}" if newest else ""
    raise UserError(f"{where or path}: is a folder without {' and '.join(names)}{there}; name a run's folder or a file")


def resolved_path(path, where="", names=(BEST, LAST)):
    """The `checkpoint_file` as a str to record and to show; an exported model on the Hub keeps its name there."""
    return str(path if is_on_hub(path) else checkpoint_file(path, where, names))


def newest_checkpoint(out_dir):
    """The checkpoint of the highest step in `out_dir`, or None."""
    name = newest_name(path.name for path in Path(out_dir).glob("model*.pt"))
    return name and Path(out_dir) / name


def newest_name(names):
    """The name of the checkpoint of the highest step among these file names, or None."""
    found = names_by_step(names)
    return found[-1] if found else None


def names_by_step(names):
    """The checkpoints among these file names, model000500.pt, ordered by step."""
    return sorted((name for name in names if re.fullmatch(r"model\d+\.pt", name)), key=step_of)


def step_of(path):
    """The step of a checkpoint by its name, model000500.pt."""
    return int(re.search(r"model(\d+)\.pt$", str(path))[1])


# ---- The checkpoints of a run --------------------------------------------------------------------------------------


class CheckpointFolder:
    """Writes the checkpoints of one run to its `WorkFolder`: model<step>.pt, last.pt (the newest), best.pt
    and, where a time limit ended the first stage, stage1.pt.

    Only the first of several processes writes. keep: the number of the newest model<step>.pt to keep; 0: all. The
    others are never removed. If a blob store fails, a warning says so and the run continues: the next call pushes
    the missing files.
    """

    def __init__(self, folder, keep=0):
        self.folder, self.keep = folder, keep

    def save(self, checkpoint):
        """Write OUT/model<step>.pt, whole or not at all, and make it last.pt too. Returns its path or store's URL."""
        path = checkpoint_path(self.folder.path, checkpoint.step)
        save_checkpoint(checkpoint, path)
        name_also(path, self.folder.path / LAST)
        pushed = self.folder.try_push()
        if self.keep and pushed:  # remove nothing while the store lacks a file
            names = names_by_step(self.folder.names())
            older = [name for name in names if step_of(name) <= checkpoint.step]
            self.folder.try_remove(older[: -self.keep])
        return self.folder.shown(path.name) if pushed else path

    def save_best(self, checkpoint, saved):
        """Make this checkpoint best.pt. saved: whether `save` has just written it."""
        path = self.folder.path / BEST
        if saved:
            name_also(checkpoint_path(self.folder.path, checkpoint.step), path)
        else:
            save_checkpoint(checkpoint, path)
        self.folder.try_push()

    def save_stage(self, checkpoint):
        """Write stage1.pt, from which the first stage can go on. Returns its path or store's URL."""
        save_checkpoint(checkpoint, self.folder.path / STAGE)
        self.folder.try_push()
        return self.folder.shown(STAGE)

    def forget_stage(self):
        """Remove a stage1.pt of a run that this one replaces."""
        if STAGE in self.folder.names():
            self.folder.try_remove([STAGE])

    def has(self, step):
        """Whether the folder holds this step's checkpoint; a resumed run may have its start in another folder."""
        return checkpoint_path("", step).name in self.folder.names()

    def best_so_far(self, start):
        """`Checkpoint.validation` of the folder's best.pt; {} without one.

        start: the checkpoint that the run resumes, or None. If `start` is the best and the run was killed before it
        wrote best.pt, this method writes best.pt.
        """
        found, own = self._validation_of_best(start), start.validation if start else {}
        if not own or own["step"] != start.step:
            return found
        path = checkpoint_path(self.folder.path, start.step)
        if path.exists() and (found.get("cases") != own["cases"] or _log_loss(own) < _log_loss(found)):
            name_also(path, self.folder.path / BEST)
            return own
        return found

    def describe_best(self, validation):
        """The end of a line on best.pt, "; best.pt is of step 500, validation log loss 0.0812, Dice 0.900"; "" for no
        validation, {}."""
        if not validation:
            return ""
        figures = [f"log loss {validation['log_loss']:.4f}"] if "log_loss" in validation else []
        figures += [f"Dice {validation['dice']:.3f}"] if "dice" in validation else []
        return f"; {self.folder.shown(BEST)} is of step {validation['step']}, validation {', '.join(figures)}"

    def _validation_of_best(self, start):
        if BEST not in self.folder.names():
            return {}
        path = self.folder.path / BEST
        if not path.exists():  # it is only in the store; the checkpoint to resume has the same validation
            return start.validation if start else {}
        try:
            return load_checkpoint(path, remedy="the next validation makes a new one").validation
        except UserError as error:
            console().warning(f"warning: {error}")
            return {}
