"""Loaders by name: this package's own, those of installed packages, and classes in a user's file."""

import importlib
import importlib.metadata
import importlib.util
import inspect
import shlex
import sys
from pathlib import Path

from ..io.texts import shown
from ..runtime.errors import UserError, in_one_line, innermost_place
from .accounting import unread_kinds
from .dataset import SegmentationDataset
from .loader_checks import loader_place, own_errors

LOADERS = {
    "BRATS": "guided_diffusion.data.loaders.brats:BraTSDataset",
    "ISIC": "guided_diffusion.data.loaders.isic:ISICDataset",
    "FOLDER": "guided_diffusion.data.loaders.folder:FolderDataset",
    "LIDC": "guided_diffusion.data.loaders.lidc:LIDCDataset",
    "MSD": "guided_diffusion.data.loaders.decathlon:DecathlonDataset",
}

INIT_REMEDY = "write def __init__(self, *args, **settings): super().__init__(*args, **settings), or leave it out"
AUTO = "AUTO"  # the loader that recognises the folder
KNOWN_LAYOUTS = ("MSD", "ISIC", "LIDC", "BRATS")
ANY_FOLDER = "FOLDER"  # comes after them, as it takes any images
ENTRY_POINTS = "guided_diffusion.datasets"  # the group in which a package registers its loaders


def build_dataset(data_name, data_dir, image_size, *, named_by="", split=None, need_masks=False, **settings):
    """Return the data set `data_name` over `data_dir`.

    data_name: a name in `LOADERS` (any case), one that an installed package registers, `path/to/file.py:ClassName` of
    a loader of your own, AUTO, or a subclass of `SegmentationDataset` itself.
    named_by: the file that the name was read from, such as a checkpoint; "": the user names it in this very command or
    call. A file's name of a loader file is refused: whoever wrote the file would choose code that runs here.
    split, need_masks, settings (view, hold_out, ct_window, classes, ignore_label, keep_unreadable): see
    `SegmentationDataset`.
    Raises `UserError` for an unknown name, a file that does not load, and whatever the loader refuses.
    """
    loader = find_loader(recognised(data_name, data_dir), named_by=named_by)
    settings |= {"split": split, "need_masks": need_masks}
    if not _takes(loader, "keep_unreadable"):  # an __init__ of version 0.2.0
        settings.pop("keep_unreadable", None)
    if not all(_takes(loader, name) for name in settings):
        raise UserError(f"{loader_place(loader)}: its __init__ does not take what the program gives it; {INIT_REMEDY}")
    with own_errors(loader, "__init__"):
        dataset = loader(data_dir, image_size, **settings)
    if "classes" not in vars(dataset):
        raise UserError(f"{loader_place(loader)}: its __init__ does not call that of its base; {INIT_REMEDY}")
    return dataset


def _takes(loader, keyword):
    """Whether a loader's `__init__` takes a keyword argument."""
    parameters = inspect.signature(loader.__init__).parameters.values()
    return any(one.name == keyword or one.kind == one.VAR_KEYWORD for one in parameters)


def recognised(data_name, data_dir):
    """The data name itself, or for AUTO the name of the loader that recognises the folder.

    Raises `UserError` if none does, or two of `KNOWN_LAYOUTS` do.
    """
    if not isinstance(data_name, str) or data_name.upper() != AUTO:
        return data_name
    if not Path(data_dir).is_dir():
        what = "is a file" if Path(data_dir).is_file() else "no such folder"
        raise UserError(f"{data_dir}: {what}; --data_dir must name the folder that holds the data")
    found = [name for name in KNOWN_LAYOUTS if _recognises(name, data_dir)]
    if len(found) > 1:
        raise UserError(
            f"{data_dir}: has the layouts of {found[0]} and {found[1]}; choose one with --data_name {found[0]} or "
            f"--data_name {found[1]}"
        )
    found = found or [name for name in (ANY_FOLDER, *registered_loaders()) if _recognises(name, data_dir)]
    if not found:
        raise UserError(
            f"{data_dir}: is in none of the layouts {', '.join((*KNOWN_LAYOUTS, ANY_FOLDER))}; name a loader with "
            f"--data_name{unread_kinds(data_dir)}"
        )
    return found[0]


def _recognises(name, data_dir):
    """Whether the loader of this name recognises a folder."""
    loader = find_loader(name)
    with own_errors(loader, "recognises"):
        return loader.recognises(Path(data_dir))


def find_loader(data_name, *, named_by="", flag="--data_name "):
    """Return the `SegmentationDataset` subclass of a data name other than AUTO (see `build_dataset`).

    flag: how the user names a loader, for the message about one that `named_by` names.
    """
    if isinstance(data_name, type):
        return data_name
    if named_by:
        _check_named(data_name, named_by, flag)
    place, class_name, loader = _named_object(data_name)
    if not (isinstance(loader, type) and issubclass(loader, SegmentationDataset)):
        raise UserError(
            f"--data_name {data_name}: {place} has no class {class_name} that extends SegmentationDataset"
            + _classes_there(data_name)
        )
    return loader


def is_loader_file(data_name):
    """Whether a data name is that of a user's loader, path/to/file.py:Class, whose file would run."""
    return ".py:" in data_name


def _check_named(data_name, named_by, flag):
    """Raise `UserError` unless a file, `named_by`, may choose this loader: a registered one, known by its name."""
    if not isinstance(data_name, str):
        raise UserError(f"{named_by}: its data_name is {data_name!r:.80}, not a name; name the loader by {flag}NAME")
    if is_loader_file(data_name):
        whole = data_name if data_name.isprintable() else shown(data_name)  # to be copied
        raise UserError(
            f"{named_by}: names the loader file {whole}, which was not run, since only you may choose code to run; if "
            f"you trust it, add {flag}{shlex.quote(whole)}"
        )
    if data_name.upper() not in {*LOADERS, *registered_loaders()}:
        raise UserError(f"{named_by}: names the loader {shown(data_name)}, which is not installed here; add {flag}NAME")


def registered_loaders():
    """{name in upper case: entry point} of the loaders that installed packages register in `ENTRY_POINTS`."""
    return {point.name.upper(): point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _named_object(data_name):
    """(file or module, class name, the class) of a data name other than AUTO; the class is None if it does not exist.

    Raises `UserError` for an unknown name, and for a file or package that does not load.
    """
    if is_loader_file(data_name):
        path, _, class_name = data_name.rpartition(":")
        return path, class_name, getattr(_import_file(Path(path)), class_name, None)
    if data_name.upper() in LOADERS:
        path, _, class_name = LOADERS[data_name.upper()].partition(":")
        return path, class_name, getattr(importlib.import_module(path), class_name)
    return _registered(data_name)


def _classes_there(data_name):
    """The loaders in the file of a data name, for the message about another class."""
    if not is_loader_file(data_name):
        return ""
    module = sys.modules[f"_loader_{Path(data_name.rpartition(':')[0]).stem}"]
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, SegmentationDataset) and value.__module__ == module.__name__
    ]
    return f"; it has {', '.join(names)}" if names else "; it has none"


def _registered(data_name):
    """`_named_object` of a loader that an installed package registers."""
    points = registered_loaders()
    point = points.get(data_name.upper())
    if point is None:
        names = ", ".join([*LOADERS, AUTO, *points])
        raise UserError(f"--data_name {data_name}: unknown; use {names} or path/to/my_loader.py:MyDataset")
    try:
        return point.module, point.attr, point.load()
    except Exception as error:  # a package's import may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--data_name {data_name}: {point.value} of an installed package fails: {reason}") from error


def _import_file(path):
    """The module of a Python file. Raises `UserError` with the line of an error in it."""
    if not path.is_file():
        raise UserError(f"--data_name {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"_loader_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}: line {error.lineno}: {error.msg}") from error
    except Exception as error:
        place = innermost_place(error, {spec.name})
        line = f"line {place[1]}: " if place else ""
        beside = path.parent / f"{getattr(error, 'name', None)}.py"
        remedy = f"; it lies beside the loader: set PYTHONPATH={path.parent.resolve()}" if beside.is_file() else ""
        raise UserError(f"{path}: {line}{in_one_line(error)}{remedy}") from error
    return module
