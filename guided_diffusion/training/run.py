"""A training run before it starts: its settings, data and the checkpoint that it continues, all checked."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..checkpoint import BEST, LAST, STAGE, Checkpoint, load_checkpoint, newest_name, resolved_path, step_of
from ..config.command_line import options_over
from ..config.config_file import record_beside, run_values
from ..config.fields import Given, named_by
from ..config.options import NO_WINDOW, DataOptions
from ..config.places import with_folders
from ..config.settings import HOLD_OUT_FLAGS, DataFacts, Settings, changes, settle
from ..config.train_options import TrainOptions
from ..data.compatibility import check_channels, check_reading, used_window
from ..data.dataset import SegmentationDataset
from ..data.registry import build_dataset, recognised
from ..data.resizing import WHOLE, View
from ..data.splits import hold_out_of, loading_of
from ..io.hub import is_on_hub
from ..io.pictures import allow_megapixels
from ..io.storage import (
    WorkFolder,
    absolute,
    fetch_file,
    fetch_folder,
    folder_and_name,
    is_remote,
    is_same_folder,
    on_this_machine,
)
from ..runtime.console import counted
from ..runtime.distributed import pick_precision
from ..runtime.errors import NoCasesError, NoTruthError, UserError
from .encoder_weights import find_encoder_weights
from .initial import find_initial, network_values
from .planning import find_plan
from .trackers import check_tracker
from .training_plan import Plan, may_plan
from .validation import spread_cases

BEGINNINGS = ("init_from", "encoder_weights")  # options that act where a new run begins, and never later
MUCH_OF_START = 0.05  # share of the random start in averaged weights


@dataclass(frozen=True)
class ValidationData:
    """A data set for validation. noun: for its cases, in the singular. trained_on: whether they are training cases.

    warning: why the data's own validation cases are not used, or "".
    """

    dataset: SegmentationDataset
    noun: str
    trained_on: bool = False
    warning: str = ""

    def summary_line(self, train):
        """A line for the user. train: the run's `TrainOptions`."""
        cases = counted(min(train.val_cases, len(self.dataset)), self.noun)
        line = f"validation: {cases}, every {counted(train.sample_interval, 'step')}"
        if self.trained_on and not train.overfit:
            line += (
                ". They are trained on: their log loss, which also selects best.pt, shows whether the network learns, "
                "not how well it does on new images; hold some out with --val_fraction 0.1 or name others with "
                "--val_dir"
            )
        return line


@dataclass(frozen=True)
class Run:
    """A training run. start: the `Checkpoint` that it continues, or None. warnings: lines for the user. initial: the
    `Checkpoint` whose weights a new run begins with, or None. encoder_weights: {name: tensor} of --encoder_weights,
    with which a new run's encoder begins, or None. plan: the `Plan` of a new run whose sizes were open, in the first
    process; else None."""

    settings: Settings
    precision: str
    dataset: SegmentationDataset
    folder: WorkFolder
    start: Checkpoint | None = None
    validation: ValidationData | None = None
    warnings: tuple = ()
    initial: Checkpoint | None = None
    encoder_weights: dict | None = None
    plan: Plan | None = None

    @property
    def is_complete(self):
        """Whether the checkpoint that it continues has the last step, or a later one."""
        return self.start is not None and self.start.step >= self.settings.train.last_step

    @property
    def complete_line(self):
        """A line for a complete run, with how to go on."""
        train = self.settings.train
        step, last, first_stage = self.start.step, train.last_step, self.start.first_stage
        so_far = f"step {step} of {last}" if step == last else f"step {step}, beyond {last}"
        line = (
            f"the run is complete already ({so_far}): nothing was trained; to go on, give {train.ending_flags} "
            f"above {step}"
        )
        if first_stage:
            line += (
                f" (the condition model is fixed since step {first_stage}; to train it for longer, begin anew with "
                "more steps)"
            )
        return line

    @property
    def config(self):
        """The option values for checkpoints: a dict for each group, with absolute paths."""
        settings = self.settings
        train = asdict(settings.train)
        del train["dry_run"]
        for name in ("out_dir", "val_dir", "resume_checkpoint", "init_from", "encoder_weights"):
            if train[name] not in ("", "auto") and not is_on_hub(train[name]):
                train[name] = absolute(train[name])
        data = (
            asdict(settings.data) | {"data_dir": absolute(settings.data.data_dir)}
            if settings.data
            else {"data_name": ""}
        )
        return {
            "data": data,
            "model": asdict(settings.model),
            "diffusion": asdict(settings.diffusion),
            "train": train,
            "device": {"precision": self.precision, "use_fp16": self.precision == "fp16"},
        }

    @property
    def values(self):
        """The same as one dict, for config.yaml."""
        return run_values(self.config, self.settings)


def prepare_run(options, given, processes):
    """The `Run` that the options ask for, checked; nothing is written.

    options, given: from `command_line.parse`. Raises `UserError` for options, data or a checkpoint that do not fit.
    """
    options = [with_last_checkpoint(part) if isinstance(part, TrainOptions) else part for part in options]
    asked = next(part for part in options if isinstance(part, TrainOptions))
    check_tracker(asked.track)
    folder = begun_folder(asked.out_dir, processes)
    start = find_start(asked, folder, processes)
    if start is not None:
        data = next(part for part in options if isinstance(part, DataOptions))
        start.config = recalled(start.config, asked, data, given, folder)
    unused_init = []
    for name in BEGINNINGS if start is not None else ():
        if name in given:
            unused_init.append(f"--{name} has no effect: the run goes on from its own step {start.step}")
            given = Given(given - {name}, given.from_files)
    initial = find_initial(asked, processes) if start is None else None
    if initial is not None:
        options = options_over(options, given, network_values(initial))
    saved = None if start is None else start.saved("to go on from")
    settings = settle(options, given, saved)
    allow_megapixels(settings.data.max_megapixels)
    divided = None
    if start is not None:
        divided = check_hold_out(settings.data, start.config)
        folder = begun_folder(settings.train.out_dir, processes)  # the checkpoint's, unless the flag was given
        check_not_behind(folder, start, processes)
    precision, lacking = choose_precision(settings.device, given, start, processes.device)

    data_dir = on_this_machine(settings.data.data_dir, fetch_folder, processes)
    here = replace(settings.data, data_dir=data_dir, data_name=recognised(settings.data.data_name, data_dir))
    origin = named_by("data_name", given, "" if start is None else shown_start(asked, folder))
    plan = None
    if start is None and initial is None and may_plan(settings.train, given):
        options, here, plan = planned_options(options, given, settings, here, origin, precision, processes)
        settings = settle(options, given)
    view = View(keep_size=settings.train.crop, soft_masks=settings.train.soft_masks)
    dataset = find_data(here, settings.image_size, view, origin)
    settings = settle(options, given, saved, facts_of(dataset, here))
    dataset.orientation = settings.train.orientation
    check_dataset(dataset, settings.model, start)
    if settings.train.overfit:
        dataset.cases = [dataset.cases[index] for index in spread_cases(dataset, settings.train.overfit)]

    validation = find_validation(replace(settings.data, data_dir=data_dir), settings, dataset, processes)
    changed = saved and changes(settings, saved)
    changed = changed and f"changed from step {start.step} on: {changed}"
    unused = validation.warning if validation else ""
    warnings = (
        unused,
        *unused_init,
        divided,
        changed,
        lacking,
        condition_model_warning(settings.train, start, folder),
        no_diffusion_warning(settings, start),
        random_start_warning(settings.train),
        random_encoder_warning(settings) if start is None and initial is None else None,
    )
    warnings = tuple(filter(None, warnings))
    weights = find_encoder_weights(settings.train, processes) if start is None else None
    return Run(settings, precision, dataset, folder, start, validation, warnings, initial, weights, plan)


def planned_options(options, given, settings, data, origin, precision, processes):
    """(the options with the values of a plan, the `DataOptions` with the classes found, the `Plan` or None).

    The first process looks at the data and times steps; the others take its values, and get no `Plan`. settings: those
    without a plan. data: the `DataOptions` with a local data_dir. origin: see `fields.named_by`.
    """
    made = []

    def look():
        dataset = find_data(data, settings.image_size, WHOLE, origin)
        check_dataset(dataset, settings.model, None)
        found, plan = find_plan(options, given, settings, dataset, facts_of(dataset, data), precision, processes)
        made.append(plan)
        return {"values": plan.values, "classes": str(dataset.classes) if data.classes == "auto" else data.classes}

    agreed = processes.from_first(look)
    data = replace(data, classes=agreed["classes"])
    return options_over(options, given, agreed["values"]), data, made[0] if made else None


# ---- the data ------------------------------------------------------------------------------------------------------


def facts_of(dataset, data):
    """The `DataFacts` of a data set. data: the `DataOptions` it was built with."""
    is_without_window = bool(dataset.kept_values().get("is_nifti")) or data.ct_window == NO_WINDOW
    return DataFacts(
        data_name=data.data_name,
        orientation=dataset.orientation,
        ct_window=used_window(dataset.kept_values(), data.ct_window) or (NO_WINDOW if is_without_window else ""),
        classes=str(dataset.classes),
        count=len(dataset.classes),
        is_exclusive=dataset.classes.is_exclusive,
    )


def find_data(data, image_size, view, origin):
    """The training data. view: how it shows a case to the network. origin: see `fields.named_by`."""
    options = {"split": "train", "need_masks": True, "view": view, **loading_of(data)}
    return build_dataset(data.data_name, data.data_dir, image_size, named_by=origin, **options)


def find_validation(data, settings, dataset, processes):
    """The `ValidationData` of a run on `dataset`, or None without validation.

    data: `DataOptions` with a local data_dir. Raises `UserError` for cases of --val_dir that do not fit the training
    cases or are among them.
    """
    train = settings.train
    if not train.sample_interval:
        return None
    if train.overfit:
        return ValidationData(dataset, "case", trained_on=True)
    found = _validation_cases(data, train, dataset, on_this_machine(train.val_dir, fetch_folder, processes))
    if settings.model.class_cond:
        remedy = " or name other validation cases with --val_dir"
        check_labels(found.dataset, dataset.label_names, "the training cases have", remedy)
    return found


def _validation_cases(data, train, dataset, val_dir):
    """The cases of --val_dir, else of the data's validation part or those held out, else the training cases."""
    if val_dir:
        shown = {"view": dataset.view, **loading_of(data), "hold_out": None}
        found = build_dataset(type(dataset), val_dir, dataset.image_size, need_masks=True, **shown)
        _check_fits(found, dataset)
        return ValidationData(found, "validation case")
    try:
        options = {"split": "val", "need_masks": True, "view": dataset.view, **loading_of(data)}
        found = build_dataset(type(dataset), data.data_dir, dataset.image_size, **options)
    except NoCasesError as error:
        warning = str(error) if isinstance(error, NoTruthError) else ""
        return ValidationData(dataset, "training case", trained_on=True, warning=warning)
    return ValidationData(found, "held-out case" if data.val_fraction or data.fold else "validation case")


def _check_fits(found, dataset):
    for name in ("image_channels", "class_names"):  # class labels are checked where the network sees them
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


def check_dataset(dataset, model_options, start):
    """Raise `UserError` if the data does not fit the model options, or the checkpoint `start` (or None)."""
    if model_options.class_cond:
        check_labels(dataset, None if start is None else start.label_names, "the checkpoint was trained with")
    if start is None:
        return
    check_channels(dataset, start.image_channels)
    check_reading(dataset, start.config)
    if list(dataset.class_names) != start.class_names or dataset.classes.is_exclusive != start.classes.is_exclusive:
        raise UserError(
            f"{dataset.data_dir}: has the classes {dataset.classes.described()}, the checkpoint was trained with "
            f"{start.classes.described()}"
        )


def check_labels(dataset, known, whose, remedy=""):
    """Raise `UserError` unless every case has a class label that a class-conditional model knows.

    known: the names of the model's labels, or None for a new model. whose: the start of a clause on `known`, and
    remedy: a further remedy for a case without label, both for messages.
    """
    names = list(dataset.label_names)
    for case in dataset.cases:
        if case.label not in range(len(names)):
            has = "no class label" if case.label is None else f"the class label {case.label} of {len(names)}"
            raise UserError(f"{case.images[0]}: has {has}, which --class_cond True needs; set it False{remedy}")
    if known is not None and names != list(known):
        raise UserError(
            f"{dataset.data_dir}: has the labels {', '.join(names)}, {whose} {', '.join(known)}; use data with those"
        )


# ---- the checkpoint to continue -------------------------------------------------------------------------------------


def begun_folder(out_dir, processes):
    """The `WorkFolder` of --out_dir. Only the first process lists its files, so only it calls `begin`."""
    folder = WorkFolder(out_dir, "training")
    if processes.is_first:
        folder.begin()
    return folder


def find_start(train, folder, processes):
    """The `Checkpoint` to continue, or None for a new run. Raises `UserError` for a new run in a used --out_dir."""
    newest = newest_of(folder, processes)
    if train.resume_checkpoint == "auto":
        if newest is None:
            return None
        remedy = "remove it to go on from the one before, or copy it again"
        path, where = bring(folder, newest, processes), str(folder.shown(newest))
        return load_checkpoint(path, to_train=True, where=where, remedy=remedy)
    if train.resume_checkpoint:
        path = train.resume_checkpoint
        here = on_this_machine(path, fetch_file, processes)
        where, remedy = f"--resume_checkpoint {path}", "copy it again or name another checkpoint of the run"
        return load_checkpoint(here, to_train=True, where=where, remedy=remedy)
    if newest is not None:
        raise UserError(
            f"--out_dir holds a run already ({folder.shown(newest)}): add --resume_checkpoint auto or choose another"
        )
    return None


def with_last_checkpoint(train):
    """The `TrainOptions` with --resume_checkpoint as a file, where it names a run's folder: that run's last.pt."""
    path = train.resume_checkpoint
    if path in ("", "auto"):
        return train
    return replace(train, resume_checkpoint=resolved_path(path, f"--resume_checkpoint {path}", (LAST,)))


def recalled(config, train, data, given, folder):
    """The config of the checkpoint to continue with the folders that it leaves out: see `places.with_folders`.

    They come from the config.yaml beside it, and data_dir also from the flag. train, data: the options as parsed. The
    run goes on in the checkpoint's folder. Raises `UserError` for a folder that is needed and unknown.
    """
    path = folder.shown(BEST) if train.resume_checkpoint == "auto" else train.resume_checkpoint
    unpushed = record_beside(folder.path / BEST) if train.resume_checkpoint == "auto" else {}
    record = unpushed or record_beside(path)
    config = with_folders(config, record, [data.data_dir])
    begun_with = {name: record.get(name) for name in BEGINNINGS}  # for the record alone
    begun_with = {name: value if isinstance(value, str) else "" for name, value in begun_with.items()}
    config |= {"train": config["train"] | begun_with}
    if config.get("digests", {}).get("val_dir") and not config["train"].get("val_dir") and "val_dir" not in given:
        raise UserError("--val_dir: is needed; the run had one, and no config.yaml beside its checkpoint names it")
    own = folder_and_name(path)[0] if is_remote(path) else str(Path(path).absolute().parent)
    stored = config["train"].get("out_dir")  # of an older checkpoint
    if stored and "out_dir" not in given and train.resume_checkpoint != "auto" and not is_same_folder(stored, own):
        raise UserError(f"--out_dir: is needed; {path} names the folder {stored} for it, which is not its own")
    if "out_dir" in given or (stored and train.resume_checkpoint != "auto"):
        return config
    if train.resume_checkpoint == "auto":
        out_dir = train.out_dir
    elif record:
        out_dir = own
    else:
        raise UserError(
            f"--out_dir: is needed; the checkpoint names no folder, and no config.yaml lies beside {path}, from which "
            "the run would go on in its own"
        )
    return config | {"train": config["train"] | {"out_dir": out_dir}}


def shown_start(train, folder):
    """The checkpoint to continue, for messages."""
    return f"--resume_checkpoint {train.resume_checkpoint}" + (
        f" ({folder.shown()})" if train.resume_checkpoint == "auto" else ""
    )


def newest_of(folder, processes):
    """The name of the newest checkpoint in a `WorkFolder`, or None; the same in every process."""
    return processes.from_first(lambda: newest_name(folder.names()))


def bring(folder, name, processes):
    """The local path of a checkpoint in a `WorkFolder`, in every process, even if it was not pushed yet."""
    if not is_remote(folder.shown()):
        return folder.path / name
    processes.from_first(folder.push)
    if processes.is_first:
        folder.pull(lambda other: other == name)
    return processes.by_machine(lambda: folder.path / name if processes.is_first else fetch_file(folder.shown(name)))


def check_not_behind(folder, start, processes):
    """Raise `UserError` if --out_dir holds later checkpoints than `start`: the run would overwrite them."""
    newest = newest_of(folder, processes)
    if newest is not None and step_of(newest) > start.step:
        raise UserError(
            f"--out_dir holds a later checkpoint ({folder.shown(newest)}) than the one to go on from, of step "
            f"{start.step}: remove the later ones or choose another"
        )


def check_unchanged(run, processes):
    """Raise `UserError` if another run wrote a later checkpoint to the folder before this one had its lock."""
    newest, known = newest_of(run.folder, processes), -1 if run.start is None else run.start.step
    if newest is not None and not run.settings.train.overfit and step_of(newest) > known:
        raise UserError(
            f"{run.folder.shown(newest)}: was written by another run while this one began; give the command again, "
            "with --resume_checkpoint auto, or choose another --out_dir"
        )


def check_hold_out(data, config):
    """Raise `UserError` if options divide the data otherwise than before: cases trained on could count as unseen.

    For data of another folder it is a warning, which this returns; else None. config: the option values of the
    checkpoint.
    """
    before, now = config["data"], asdict(data)
    was, wanted = hold_out_of(before), hold_out_of(now)
    if wanted in (None, was):
        return None
    if not before.get("data_dir") or not is_same_folder(data.data_dir, before["data_dir"]):
        if was is None:
            return None
        return (
            f"warning: {wanted.flags} divides {data.data_dir} otherwise than the run divided "
            f"{before.get('data_dir') or 'its data'}; "
            "if these are the same data, it has learned from cases that now count as unseen"
        )
    name = next(name for name in HOLD_OUT_FLAGS if now[name] != before.get(name, type(now[name])()))
    raise UserError(
        f"--{name} {now[name] or repr(now[name])}: would divide {data.data_dir} otherwise than the run has so far, so "
        "that cases which trained or selected its network could count as unseen; leave it out, or begin anew in "
        "another --out_dir"
    )


def choose_precision(device_options, given, start, device):
    """The precision of the run, and a warning if `device` lacks the precision of the checkpoint, or None."""
    auto = pick_precision("auto", device)
    if start is None or {"precision", "use_fp16"} & given:
        return pick_precision(device_options.precision, device), None
    before = start.config.get("device", {}).get("precision", "auto")
    if (before == "bf16" and auto != "bf16") or (before == "fp16" and device.type != "cuda"):
        lacking = f"warning: the run was in {before}, which {device} lacks: it goes on in {auto} (see --precision)"
        return auto, lacking
    return pick_precision(before, device), None


# ---- warnings ------------------------------------------------------------------------------------------------------


def condition_model_warning(train, start, folder):
    """A warning if a run past its first stage continues for much longer with a fixed condition model, or None.

    folder: the run's `WorkFolder`, which may hold the checkpoint at the end of the first stage.
    """
    first_stage = None if start is None else start.first_stage
    if not first_stage or train.condition_steps > start.step or train.last_step <= 2 * first_stage:
        return None
    before = f"a checkpoint before step {first_stage}, or begin anew"
    if STAGE in folder.names():
        before = f"{folder.shown(STAGE)}, into another --out_dir"
    return (
        f"warning: the condition model learned in the first {first_stage} of {train.last_step} steps and stays fixed, "
        f"except its last layer; to train it for longer go on from {before}"
    )


def no_diffusion_warning(settings, start):
    """A warning if the run ends before the diffusion learns (see `--condition_steps`), or None."""
    alone, last = settings.train.condition_steps, settings.train.last_step
    if not 0 < last <= alone or (start is not None and start.step >= alone):
        return None
    return (
        f"warning: --condition_steps {alone} leaves none of {last} steps to the diffusion, which learns nothing: give "
        "fewer, or -1 for 85 % of the run, or go on with more by --resume_checkpoint auto --max_steps N"
    )


def random_start_warning(train):
    """A warning if averaged weights without warm-up still hold much of the random start at the run's end, or None."""
    share = max(train.ema_rates()) ** train.last_step
    if train.ema_warmup or share < MUCH_OF_START:
        return None
    return (
        f"warning: --ema_warmup False: after {train.last_step} steps the averaged weights, by which runs are validated "
        f"and sampled, still hold {share:.0%} of the random start: add --ema_warmup True, or sample with --weights "
        "model"
    )


def random_encoder_warning(settings):
    """A line for a new run whose encoder begins at random; None for others."""
    if not settings.model.encoder or settings.train.encoder_weights:
        return None
    return (
        f"warning: --encoder {settings.model.encoder} begins at random: name weights for it with --encoder_weights, or "
        "leave it out"
    )
