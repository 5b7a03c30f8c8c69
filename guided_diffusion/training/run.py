"""What a training run is: its options, its data and the checkpoint it goes on from, settled and checked."""

import dataclasses
from dataclasses import dataclass

from ..checkpoint import Checkpoint, load_checkpoint, newest_name, saved_options, step_of
from ..config.command_line import run_values
from ..config.options import DataOptions, DiffusionOptions, ModelOptions, build
from ..config.recipe import check_variant, recipe_values
from ..config.script_options import TrainOptions
from ..data.compatibility import check_reading, trained_window, used_window
from ..data.dataset import SegmentationDataset
from ..data.registry import AUTO, build_dataset, recognised
from ..data.resizing import View
from ..data.splits import HOLD_OUT_FLAGS, hold_out_of, loading_of
from ..io.storage import WorkFolder, absolute, fetch_file, fetch_folder, is_remote, is_same_folder
from ..runtime.console import counted
from ..runtime.distributed import pick_precision
from ..runtime.errors import NoCasesError, UserError
from .validation import spread_cases

# ---- The options that a checkpoint brings: a resumed run's and sampling's, as before but for the flags given now ----


# What `changes` leaves out: paths, which are made absolute, how long the run goes on, and a name for other values.
UNLISTED_CHANGES = {"out_dir", "resume_checkpoint", "data_dir", "val_dir", "max_steps", "max_minutes", "recipe"}


def counting(given, options, config):
    """The names of the options that count against a checkpoint's `config`: those given, and of a recipe that was asked
    for, unless it is the checkpoint's own, those that it brought. options: the parsed instances, all of them."""
    values = _values(options)
    if "recipe" not in given or values["recipe"] == (config["train"].get("recipe") or "none"):
        return given
    return given | recipe_values(values["recipe"], {name: values[name] for name in given}).keys()


def go_on_with(options, saved, given):
    """A resumed run's options: as before, but for the flags given now."""
    names = {item.name for item in dataclasses.fields(options)}
    values = {name: value for name, value in saved.items() if name in names}
    values |= {name: getattr(options, name) for name in names & given}
    return build(type(options), values, whole=False)


def check_hold_out(data, config):
    """Refuse to hold out others of the cases that a run, of a checkpoint's `config`, has trained on so far: those that
    it has learned from would be scored as unseen ones."""
    before, now = config["data"], dataclasses.asdict(data)
    was, wanted = hold_out_of(before), hold_out_of(now)
    if wanted in (None, was) or not is_same_folder(data.data_dir, before["data_dir"]):
        return
    name = next(name for name in HOLD_OUT_FLAGS if now[name] != before.get(name, type(now[name])()))
    raise UserError(
        f"--{name} {now[name]}: would hold out cases of {data.data_dir} from which the run has learned so far; leave "
        "it out, or begin anew in another --out_dir"
    )


def changes(options, given, start):
    """A line on what the flags given change of the run of a `Checkpoint`, None where they change nothing. options: the
    parsed instances."""
    before = start.config["data"] | start.config["train"]
    values = _values(options)
    names = [name for name in sorted(given & before.keys() - UNLISTED_CHANGES) if values[name] != before[name]]
    told = ", ".join(f"--{name} {values[name]} (was {before[name]})" for name in names)
    return f"changed from step {start.step} on: {told}" if told else None


def _values(options):
    return {name: value for group in options for name, value in dataclasses.asdict(group).items()}


def kept_precision(config, device):
    """The precision in which the run of a checkpoint's `config` goes on, and a warning or None.

    It is the run's own, or auto where `device` lacks that.
    """
    before, auto = config.get("device", {}).get("precision", "auto"), pick_precision("auto", device)
    if (before == "bf16" and auto != "bf16") or (before == "fp16" and device.type == "cpu"):
        return (
            auto,
            f"warning: the run was in {before}, which {device} lacks: it goes on in {auto}; --precision chooses",
        )
    return pick_precision(before, device), None


# ---- Which cases watch over a training: those of --val_dir, of the data's own validation part, held out, or trained on


@dataclass(frozen=True)
class ValidationData:
    """A data set with masks, and what its cases are, in words that stand after a number, in the singular."""

    dataset: SegmentationDataset
    noun: str
    trained_on: bool = False

    def told(self, train):
        """A line that says how it is used. train: the run's `TrainOptions`."""
        cases = counted(min(train.val_cases, len(self.dataset)), self.noun)
        line = f"validation: {cases}, every {counted(train.sample_interval, 'step')}"
        if self.trained_on and not train.overfit:
            line += (
                ". They are trained on: their Dice, by which best.pt goes, says whether the network learns and not how "
                "it does on new images; hold some out with --val_fraction 0.1 or name others with --val_dir"
            )
        return line


def find_validation(data, train, dataset, val_dir):
    """The `ValidationData` of a run on `dataset`.

    data, train: the `DataOptions` and `TrainOptions`; data.data_dir and val_dir are local folders, val_dir that of
    --val_dir or "". Raises `UserError` for validation cases that do not fit the training cases or are among them.
    """
    if train.overfit:
        return ValidationData(dataset, "case", trained_on=True)
    if val_dir:
        shown = {"view": dataset.view, **loading_of(data), "hold_out": None}
        found = build_dataset(data.data_name, val_dir, dataset.image_size, need_masks=True, **shown)
        _check_fits(found, dataset)
        return ValidationData(found, "validation case")
    try:
        options = {"split": "val", "need_masks": True, "view": dataset.view, **loading_of(data)}
        found = build_dataset(data.data_name, data.data_dir, dataset.image_size, **options)
    except NoCasesError:
        return ValidationData(dataset, "training case", trained_on=True)
    return ValidationData(found, "held-out case" if data.val_fraction else "validation case")


def _check_fits(found, dataset):
    for name in ("image_channels", "class_names"):  # class labels are looked at where the network is told them
        have, want = getattr(found, name), getattr(dataset, name)
        if have != want:
            raise UserError(
                f"--val_dir {found.data_dir}: has the {name} {have}, the training cases have {want}; name a folder "
                "that fits"
            )
    trained_on = {path.resolve() for case in dataset.cases for path in case.images}
    for case in found.cases:
        if trained_on.intersection(path.resolve() for path in case.images):
            raise UserError(f"--val_dir {found.data_dir}: its case {case.name} is trained on; name a folder of others")


@dataclasses.dataclass(frozen=True)
class Run:
    """What is about to run, as flags and, where it goes on, a checkpoint say.

    start: that checkpoint, or None. warnings: lines of what may not be as it is meant.
    """

    data: DataOptions
    train: TrainOptions
    model: ModelOptions
    diffusion: DiffusionOptions
    precision: str
    dataset: SegmentationDataset
    start: Checkpoint | None
    folder: WorkFolder
    validation: ValidationData | None
    warnings: tuple = ()

    @property
    def is_complete(self):
        """Whether the checkpoint that it goes on from is of the last step already, or beyond it."""
        return self.start is not None and self.start.step >= self.train.last_step

    @property
    def told_complete(self):
        """A line that says so, and how to go on."""
        step, last = self.start.step, self.train.last_step
        so_far = f"step {step} of {last}" if step == last else f"step {step}, beyond {last}"
        return (
            f"the run is complete already ({so_far}): nothing was trained; to go on, give {self.train.ending_flags} "
            f"above {step}" + self._stays
        )

    @property
    def _stays(self):
        alone = self.train.condition_steps
        if not 0 < alone <= self.start.step:
            return ""
        return (
            f" (the condition model stays as it was after step {alone}; for one that learns for longer begin anew with "
            "more steps)"
        )

    @property
    def config(self):
        """The option values that are kept in checkpoints: a dict for each group. Paths are those of any folder."""
        train = dataclasses.asdict(self.train)
        del train["dry_run"]
        for name in ("out_dir", "val_dir", "resume_checkpoint"):
            if train[name] not in ("", "auto"):
                train[name] = absolute(train[name])
        return {
            "data": dataclasses.asdict(self.data) | {"data_dir": absolute(self.data.data_dir)},
            "model": dataclasses.asdict(self.model),
            "diffusion": dataclasses.asdict(self.diffusion),
            "train": train,
            "device": {"precision": self.precision, "use_fp16": self.precision == "fp16"},
        }

    @property
    def values(self):
        """The same as one dict, for a file of options."""
        return run_values(self.config, self.model, self.diffusion, self.train.out_dir)


def settle(options, given, processes):
    """The `Run` that the options ask for, checked; nothing is written."""
    data, train, model, diffusion, process_options = options
    folder = begun_folder(train.out_dir, processes)
    start = find_start(train, folder, processes)
    if start is not None:
        data, train, model, diffusion = options_to_go_on(options, given, start)
        folder = begun_folder(train.out_dir, processes)  # the checkpoint's, unless the flag was given
        check_not_behind(folder, start, processes)
    settle_together(data, train, model, diffusion, given)
    precision, lacking = settled_precision(process_options, given, start, processes.device)

    data_dir = on_this_machine(data.data_dir, processes)
    data = dataclasses.replace(data, data_name=recognised(data.data_name, data_dir))  # what a checkpoint is to name
    here = dataclasses.replace(data, data_dir=data_dir)
    view = View(neighbours=model.neighbours, keep_size=train.crop)
    dataset = find_data(here, model.image_size, view, chosen="data_name" in given or start is not None)
    settle_by_data(dataset, data, train)
    check_dataset(dataset, model, start)
    if start is None:
        diffusion.settle_activation(dataset.classes)
    if train.overfit:
        dataset.cases = [dataset.cases[index] for index in spread_cases(dataset, train.overfit)]
        model = dataclasses.replace(model, dropout=0.0)

    here = dataclasses.replace(data, data_dir=data_dir)  # with what the data say
    validation = settled_validation(here, train, model, dataset, processes)
    changed = None if start is None else changes(options, given, start)
    warnings = tuple(filter(None, (changed, lacking, stays_as_it_is(train, start), stays_alone(train, start))))
    return Run(data, train, model, diffusion, precision, dataset, start, folder, validation, warnings)


def options_to_go_on(options, given, start):
    """The options of data, training, model and diffusion of a run that goes on from `start`: the checkpoint's, but for
    the flags that were given. Raises `UserError` for flags that contradict it."""
    data, train, model, diffusion, _ = options
    before, names = start.config, counting(given, options, start.config)
    model = saved_options(ModelOptions, before["model"], model, names, "to go on from")
    diffusion = saved_options(DiffusionOptions, before["diffusion"], diffusion, names, "to go on from")
    data, train = go_on_with(data, before["data"], names), go_on_with(train, before["train"], names)
    if "ct_window" not in given:
        data.ct_window = trained_window(before)  # not what the name of other data would stand for
    check_hold_out(data, before)
    ended = before["train"].get("condition_steps", 0)
    if train.condition_steps == -1 and 0 < ended <= start.step:
        train.condition_steps = ended  # the same command again does not begin the first stage anew
    return data, train, model, diffusion


def settle_together(data, train, model, diffusion, given):
    """Settle options that follow from others; raise `UserError` for those that do not go together or are lacking."""
    for group in (data, train, model):
        group.settle_pairs(given)
    if data.group_key and not data.val_fraction:
        raise UserError("--group_key belongs to --val_fraction, which alone divides cases in training; leave it out")
    check_variant(model, diffusion, given)
    if not data.data_dir:
        raise UserError("--data_dir: is needed; it names the folder that holds the training data")


def settled_precision(process_options, given, start, device):
    """The precision of the run, and a warning where `device` lacks that of the run gone on with, or None."""
    if start is None or {"precision", "use_fp16"} & given:
        return pick_precision(process_options.precision, device), None
    return kept_precision(start.config, device)


def on_this_machine(folder, processes):
    """Where a folder is on this machine: itself, unless it is in a blob store."""
    return processes.by_machine(lambda: fetch_folder(folder)) if is_remote(folder) else folder


def settle_by_data(dataset, data, train):
    """Write into the options what the data say of those that were left open, for sampling and those who go on."""
    if train.orientation == "auto":
        train.orientation = dataset.orientation
    dataset.orientation = train.orientation
    data.ct_window = used_window(dataset.kept_values(), data.ct_window)  # also for those of --val_dir
    if data.classes == "auto":
        data.classes = str(dataset.classes)


def settled_validation(data, train, model, dataset, processes):
    """The `ValidationData` of the run, or None. data: the options, which name folders of this machine."""
    if not train.sample_interval:
        return None
    validation = find_validation(data, train, dataset, on_this_machine(train.val_dir, processes))
    if model.class_cond:
        remedy = " or name other validation cases with --val_dir"
        check_labels(validation.dataset, dataset.label_names, "the training cases have", remedy)
    return validation


def find_data(data, image_size, view, chosen):
    """The training data, shown as `view` says. chosen: whether --data_name was, rather than left at its default."""
    try:
        options = {"split": "train", "need_masks": True, "view": view, **loading_of(data)}
        return build_dataset(data.data_name, data.data_dir, image_size, **options)
    except NoCasesError as error:
        if chosen:
            raise
        raise UserError(
            f"{error}; {data.data_name} is the default of --data_name: {suggested(data.data_dir)}"
        ) from None


def suggested(data_dir):
    """What to do about `--data_name` where the one that was tried found nothing, in words."""
    try:
        return f"add --data_name {recognised(AUTO, data_dir)}"
    except (UserError, OSError):
        return "name your kind of data"


def begun_folder(out_dir, processes):
    """The `WorkFolder` of --out_dir; the first process, which alone asks it for names, has looked what is there."""
    folder = WorkFolder(out_dir, "training")
    if processes.is_first:
        folder.begin()
    return folder


def find_start(train, folder, processes):
    """The `Checkpoint` to go on from, or None for a new run. Refuses to start a new run over an old one."""
    newest = newest_of(folder, processes)
    if train.resume_checkpoint == "auto":
        return None if newest is None else load_checkpoint(bring(folder, newest, processes), to_train=True)
    if train.resume_checkpoint:
        path = train.resume_checkpoint
        here = processes.by_machine(lambda: fetch_file(path)) if is_remote(path) else path
        return load_checkpoint(here, to_train=True)
    if newest is not None:
        raise UserError(
            f"--out_dir holds a run already ({folder.shown(newest)}): add --resume_checkpoint auto or choose another"
        )
    return None


def newest_of(folder, processes):
    """The name of the newest checkpoint in a `WorkFolder` or None, as the first process sees it, in all of them."""
    return processes.from_first(lambda: newest_name(folder.names()))  # or some might see a later one


def bring(folder, name, processes):
    """The local path of a checkpoint in a `WorkFolder`. The first process may have one that was not pushed yet."""
    if not is_remote(folder.shown()):
        return folder.path / name
    processes.from_first(folder.push)
    if processes.is_first:
        folder.pull(lambda other: other == name)
    return processes.by_machine(lambda: folder.path / name if processes.is_first else fetch_file(folder.shown(name)))


def check_not_behind(folder, start, processes):
    """Refuse to go on where --out_dir holds later checkpoints: they would be overwritten one by one."""
    newest = newest_of(folder, processes)
    if newest is not None and step_of(newest) > start.step:
        raise UserError(
            f"--out_dir holds a later checkpoint ({folder.shown(newest)}) than the one to go on from, of step "
            f"{start.step}: remove the later ones or choose another"
        )


def stays_as_it_is(train, start):
    """A warning where a run past its first stage (see `--condition_steps`) is to go on for much longer: its condition
    model, and so the coarse mask, does not get better. None where there is nothing to warn of."""
    learned, last = train.condition_steps, train.last_step
    if start is None or not 0 < learned <= start.step or last <= 2 * learned:
        return None
    return (
        f"warning: the condition model learned in the first {learned} of {last} steps and stays as it is, but for its "
        f"last layer; for one that learns for longer go on from a checkpoint before step {learned}, or begin anew"
    )


def stays_alone(train, start):
    """A warning where the steps end before the diffusion begins to learn (see `--condition_steps`), or None."""
    alone, last = train.condition_steps, train.last_step
    if not 0 < last <= alone or (start is not None and start.step >= alone):
        return None
    return (
        f"warning: --condition_steps {alone} leaves none of {last} steps to the diffusion, which learns nothing: give "
        "fewer, or -1 for 85 % of the run, or go on with more by --resume_checkpoint auto --max_steps N"
    )


def check_dataset(dataset, model_options, start):
    """Raise `UserError` where the data does not fit the model that is asked for or gone on with."""
    if model_options.class_cond:
        check_labels(dataset, None if start is None else start.label_names, "the checkpoint was trained with")
    if start is None:
        return
    if dataset.image_channels != start.image_channels:
        raise UserError(
            f"{dataset.data_dir}: images have {dataset.image_channels} channels, the checkpoint was trained with "
            f"{start.image_channels}"
        )
    check_reading(dataset, start.config)
    if list(dataset.class_names) != start.class_names or dataset.classes.is_exclusive != start.classes.is_exclusive:
        raise UserError(
            f"{dataset.data_dir}: has the classes {dataset.classes.described()}, the checkpoint was trained with "
            f"{start.classes.described()}"
        )


def check_labels(dataset, known, whose, remedy=""):
    """Raise `UserError` unless every case has one of the class labels that a class-conditional model is built for.

    known: their names, or None where the model is to be built for those of this data set; whose: whose these are, in
    words. remedy: what else helps where there is no label, in words that go on.
    """
    names = list(dataset.label_names)
    for case in dataset.cases:
        if case.label not in range(len(names)):
            has = "no class label" if case.label is None else f"the class label {case.label} of {len(names)}"
            raise UserError(f"{case.images[0]}: has {has}, which --class_cond True needs; set it False{remedy}")
    if known is not None and names != list(known):
        raise UserError(
            f"{dataset.data_dir}: has the labels {', '.join(names)}, {whose} {', '.join(known)}; name data with those"
        )
