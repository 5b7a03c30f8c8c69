"""What a training run is: its options, its data and the checkpoint it goes on from, settled and checked."""

import dataclasses

from .checkpoint import Checkpoint, load_checkpoint, newest_name, step_of
from .config import DataOptions, DiffusionOptions, ModelOptions
from .config_file import run_values
from .data import SegmentationDataset, build_dataset, recognised
from .dist_util import pick_precision
from .errors import NoCasesError, UserError
from .reading import check_reading, trained_window, used_window
from .registry import AUTO
from .resuming import changes, check_hold_out, counting, go_on_with, kept_precision, saved_options
from .storage import WorkFolder, absolute, fetch_file, fetch_folder, is_remote
from .train_options import TrainOptions
from .validation import spread_cases
from .validation_data import ValidationData, find_validation
from .variants import check_variant
from .views import View


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
        options = {"split": "train", "need_masks": True, "view": view, **data.loading}
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
        return None if newest is None else load_checkpoint(bring(folder, newest, processes))
    if train.resume_checkpoint:
        path = train.resume_checkpoint
        return load_checkpoint(processes.by_machine(lambda: fetch_file(path)) if is_remote(path) else path)
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
