"""Every file below data_dir is accounted for: used by a case, known rubbish, or left over for a reason."""

import copy
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path

from ..io.files import is_found, is_rubbish, split_suffix
from ..io.folders import is_inside, walk_folders
from ..io.volume_formats import VOLUME_SUFFIXES, is_nifti
from ..runtime.console import console, counted, listed
from ..runtime.errors import NoCasesError, NoSplitError, UserError
from ..runtime.program import command
from .left_over import (
    ARCHIVE,
    ARCHIVES,
    ARRAYS,
    CLOSED,
    COMPRESSED,
    COPY_MARK,
    DOCUMENT,
    DOCUMENTS,
    EMPTY_FILE,
    FOREIGN,
    HIDDEN,
    LINK,
    MASK_WORDS,
    NAMELESS,
    ORPHAN,
    OTHER,
    OWN_UNUSED,
    PART,
    SECOND,
    SHOWN_FILES,
    UNUSED,
    foreign,
    looks_like_a_part,
)
from .splits import SPLIT_FOLDERS
from .truth import SUFFIXES
from .volumes import FILES_ONLY

# ---- the walk ----------------------------------------------------------------------------------------------------


@dataclass
class Listing:
    """What lies below a folder, as paths from it. files: those that exist. links: without a target. closed: folders
    that cannot be opened. rubbish: files and whole folders known to be no data. hidden: other hidden ones. outside:
    {file: where it is}, where links put it outside of the folder. has_aliases: whether a link leads to a file or
    folder, so that one file may have two names."""

    files: list = field(default_factory=list)
    links: list = field(default_factory=list)
    closed: list = field(default_factory=list)
    rubbish: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    outside: dict = field(default_factory=dict)
    has_aliases: bool = False


def walk(folder):
    """The `Listing` of everything below a folder; of a file nothing.

    Each real folder is entered once (see `walk_folders`), and no file is opened.
    """
    found, root = Listing(), os.path.realpath(folder)
    if os.path.isfile(root):
        return found
    for visited in walk_folders(folder, once=True):
        below = visited.below
        folders, visited.enter = {entry.name for entry in visited.enter}, []
        if visited.closed:
            found.closed.append(below or ".")
            continue
        if below and _is_our_output({entry.name for entry in visited.entries}):
            found.rubbish.append(below)
            continue
        is_outside = not is_inside(visited.real, root)
        for entry in visited.entries:
            path = os.path.join(below, entry.name)
            if is_rubbish(entry.name):
                found.rubbish.append(path)
            elif entry.name.startswith("."):
                found.hidden.append(path)
            elif entry.is_symlink() and entry.name not in folders and not is_found(entry.is_file):
                found.links.append(path)
            else:
                found.has_aliases |= entry.is_symlink()
                if entry.name in folders:
                    visited.enter.append(entry)
                    continue
                found.files.append(path)
                if is_outside:
                    found.outside[path] = os.path.join(visited.real, entry.name)
                elif entry.is_symlink() and not is_inside(target := os.path.realpath(entry.path), root):
                    found.outside[path] = target
    return found


def _is_our_output(names):
    """Whether a folder of these names is one that sampling or training wrote."""
    return ("manifest.json" in names and bool(names & {"report.html", "overlays", "metrics.csv", "summary.json"})) or (
        {"config.yaml", "log.jsonl"} <= names
    )


# ---- the account -------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """Where each file below data_dir went. used, rubbish: paths from data_dir. left_over: {`Reason`: such paths}.

    outside: {used file that links put outside of the folder: where it is}.
    failed: messages of the parts of the data whose cases could not be listed, so that their files seem left over.
    """

    folder: Path
    used: list
    rubbish: list
    left_over: dict
    outside: dict = field(default_factory=dict)
    failed: list = field(default_factory=list)

    @property
    def data_like(self):
        """The left-over files that look like data, by their reasons, the most frequent first."""
        found = {reason: names for reason, names in self.left_over.items() if reason.is_data}
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def error_lines(self):
        """A line for each reason why files that look like data are in no case."""
        return [reason.line(names) for reason, names in self.data_like.items()]

    def note(self):
        """A line that counts the left-over files that do not look like data; "" if there are none.

        It names one of an unknown kind, which a loader of a user's own may have meant to read.
        """
        counts = [
            reason.short(names) if reason is OTHER else reason.counted(names)
            for reason, names in self.left_over.items()
            if not reason.is_data
        ]
        return f"files beside the data that are not read: {', '.join(counts)}" if counts else ""

    def outside_line(self):
        """`outside_line` of the used files."""
        return outside_line(self.folder, self.outside, len(self.used))

    def warning(self):
        """The one line of training and sampling; "" if nothing that looks like data is left over."""
        found = self.data_like
        if not found:
            return ""
        number = sum(map(len, found.values()))
        why = "; ".join(reason.short(names) for reason, names in found.items())
        failed = f" ({self.failed[0]})" if self.failed else ""
        return (
            f"warning: {counted(number, 'file')} of {self.folder} {'is' if number == 1 else 'are'} not used ({why})"
            f"{failed}; {command('check')} names them"
        )


def outside_line(folder, outside, number):
    """A line on those of `number` files of a folder that lie outside of it, to which links lead; "" without any.

    outside: see `Listing`.
    """
    if not outside:
        return ""
    name, target = next(iter(outside.items()))
    are = "is" if len(outside) == 1 else "are"
    return (
        f"{len(outside)} of {counted(number, 'file')} {are} reached by links that lead out of {folder}, such as "
        f"{name} -> {target}"
    )


def account(datasets):
    """The `Account` of the files below the first data set's folder.

    datasets: those in use, such as training's and validation's. Cases of other splits are looked for only if a file
    that looks like data is in no case of these.
    """
    first = datasets[0]
    listing = walk(first.data_dir)
    used = _Used(first.data_dir)
    for dataset in datasets:
        used.add(dataset, dataset.cases)
    others = re.compile("|".join(map(translate, first.other_files)) or r"(?!)", re.IGNORECASE)
    left, belonging = [], []
    for path in listing.files:
        (belonging if path in used or others.match(os.path.basename(path)) else left).append(path)
    failed, probes = [], []
    asked = {dataset.split for dataset in datasets if dataset.data_dir == first.data_dir}
    # None means all cases, but a loader of a user's own may know only the splits that training and sampling ask for.
    for split in (None,) if _is_of_this_package(first) else (None, *SPLIT_FOLDERS):
        if split in asked or not any(map(_is_read, left)):
            continue
        probe, cases, problem = _probe(first, split)
        probes.append(probe)
        failed += [problem] if problem else []
        used.add(probe, cases)
        belonging += [path for path in left if path in used]
        left = [path for path in left if path not in used]
    aliases = used.aliases(left) if any(map(_is_read, left)) and (listing.has_aliases or used.is_elsewhere) else set()
    belonging += sorted(aliases)
    reasons = defaultdict(list)
    explain = _Explanation([*datasets, *probes], used)
    for path in left:
        if path not in aliases:
            reasons[explain(path)].append(path)
    for path in listing.links:
        reasons[LINK].append(path)
    for path in listing.closed:
        reasons[CLOSED].append(path)
    for path in listing.hidden:
        reasons[HIDDEN].append(path)
    outside = {path: listing.outside[path] for path in sorted(belonging) if path in listing.outside}
    return Account(first.data_dir, belonging, listing.rubbish, dict(reasons), outside, failed)


def _is_of_this_package(dataset):
    return bool(vars(type(dataset)).get("data_name"))


def _is_data_suffix(suffix):
    return suffix.lower() in SUFFIXES or suffix.lower() in FOREIGN


def _is_read(path):
    return split_suffix(path)[1].lower() in SUFFIXES


def _probe(dataset, split):
    """(a copy of the data set that looked for the cases of a split, the cases, a message if they cannot be listed).

    No header is read.
    """
    probe = copy.copy(dataset)
    probe.need_masks = False
    token = FILES_ONLY.set(True)
    try:
        return probe, probe.find_split(split), ""
    except (NoCasesError, NoSplitError):
        return probe, [], ""
    except UserError as error:
        return probe, [], str(error)
    except Exception:  # a loader of a user's own may know only the splits that it is asked for
        return probe, [], ""
    finally:
        FILES_ONLY.reset(token)


def warn_of_left_over(*datasets):
    """Warn in one line of files that look like data and are in no case, and in one of files outside of the folder.

    Only the first process calls it.
    """
    files = account(datasets)
    for line in filter(None, (files.outside_line(), files.warning())):
        console().warning(line)


class _Used:
    """The files of cases, as paths below `folder`."""

    def __init__(self, folder):
        self.root = os.path.abspath(folder)
        self.paths = set()
        self.images, self.masks = {}, {}  # {folder: names of such files in it}
        self.is_elsewhere = False  # whether a file is not below the folder, as far as paths show

    def add(self, dataset, cases):
        """Add the files of these cases."""
        seen = None
        for case in cases:
            if seen is not None and case.images is seen.images and case.masks is seen.masks:
                continue  # the slices of a volume
            seen = case
            for path in case.images:
                self._add(path, self.images)
            for path in (*case.masks, *dataset.further_files(case)):
                self._add(path, self.masks)

    def _add(self, path, places):
        path = os.path.abspath(path)
        folder, name = os.path.split(path)
        self.paths.add(path)
        self.is_elsewhere |= not path.startswith(self.root + os.sep)
        places.setdefault(folder, set()).add(name)

    def __contains__(self, below):
        path = os.path.join(self.root, below)
        return path in self.paths or self._is_in_a_used_folder(below)

    def _is_in_a_used_folder(self, below):
        """Whether a case's image is a folder, such as a series, that holds the file."""
        folder = os.path.dirname(below)
        while folder:
            if os.path.join(self.root, folder) in self.paths:
                return True
            folder = os.path.dirname(folder)
        return self.root in self.paths

    def aliases(self, candidates):
        """Those of the candidates, paths below `root`, that are used under another name of the same file."""
        real = _RealPaths()
        targets = {real.file(path) for path in self.paths}
        return {path for path in candidates if real.file(os.path.join(self.root, path)) in targets}


class _RealPaths:
    """Paths without links, a look at the disk for each folder and each link only."""

    def __init__(self):
        self.folders = {}

    def file(self, path):
        folder, name = os.path.split(path)
        if folder not in self.folders:
            self.folders[folder] = os.path.realpath(folder)
        path = os.path.join(self.folders[folder], name)
        return os.path.realpath(path) if os.path.islink(path) else path


class _Explanation:
    """Gives the `Reason` of a left-over file."""

    def __init__(self, datasets, used):
        self.datasets, self.used = datasets, used
        self.is_ours = _is_of_this_package(datasets[0])
        self.stems = {folder: {split_suffix(name)[0] for name in names} for folder, names in used.masks.items()}

    def __call__(self, below):
        reason = next((reason for dataset in self.datasets if (reason := dataset.explain(below))), None)
        if reason is not None:
            return reason
        suffix = split_suffix(below)[1].lower()
        folder = os.path.dirname(os.path.join(self.used.root, below))
        if suffix in SUFFIXES and (self.is_ours or suffix not in VOLUME_SUFFIXES or is_nifti(below)):
            return self._of_data(below, folder)
        if suffix in FOREIGN and self.is_ours and (suffix not in ARRAYS or self._is_beside_cases(folder)):
            return foreign(suffix)
        if not suffix and self.is_ours and folder in self.used.images and folder != self.used.root:
            return NAMELESS
        if suffix in ARCHIVES and _is_data_suffix(split_suffix(below.removesuffix(suffix))[1]):
            return COMPRESSED
        if suffix in DOCUMENTS:
            return DOCUMENT
        return ARCHIVE if suffix in ARCHIVES else OTHER

    def _of_data(self, below, folder):
        """The reason of a picture or volume."""
        if self._is_empty(os.path.join(self.used.root, below)):
            return EMPTY_FILE
        if folder in self.used.masks and folder not in self.used.images and self.is_ours:
            stem = split_suffix(below)[0]
            return SECOND if COPY_MARK.sub("", stem) in self.stems[folder] else ORPHAN
        if folder in self.used.images:
            return UNUSED if self.is_ours else OWN_UNUSED
        places = below.split(os.sep)[:-1]
        if self.is_ours and places and MASK_WORDS.search(places[-1]) and self._is_beside_images(folder):
            return ORPHAN
        if any(map(looks_like_a_part, places)):
            return PART
        return UNUSED if self.is_ours else OWN_UNUSED

    def _is_beside_images(self, folder):
        """Whether images of cases are in or below a folder beside this one, so that its name says what it holds."""
        return any(one.startswith(os.path.dirname(folder) + os.sep) for one in self.used.images)

    def _is_beside_cases(self, folder):
        return folder != self.used.root and (folder in self.used.images or folder in self.used.masks)

    def _is_empty(self, path):
        try:
            return os.stat(path).st_size == 0
        except OSError:
            return False


# ---- a folder without cases --------------------------------------------------------------------------------------


def unread_kinds(folder):
    """What a folder holds in place of images that a loader finds, for a message: "; it holds 12 .dcm files: ..." or "".

    Links without a target come first, then kinds of files that are not read, archives, and pictures elsewhere.
    """
    listing = walk(folder)
    kinds = Counter(split_suffix(path)[1].lower() for path in listing.files)
    kinds = Counter(
        {suffix: number for suffix, number in kinds.items() if suffix in FOREIGN and suffix not in SUFFIXES}
    )
    archives = [path for path in listing.files if split_suffix(path)[1].lower() in ARCHIVES]
    if listing.links:
        return f"; {LINK.line(listing.links)}"
    if kinds:
        suffix, number = kinds.most_common(1)[0]
        return f"; it holds {counted(number, suffix + ' file')}: {FOREIGN[suffix]}"
    if archives:
        return f"; it holds the archive {archives[0]}: unpack it"
    if listing.closed:
        return f"; {CLOSED.line(listing.closed)}"
    places = Counter(os.path.dirname(path) for path in listing.files if _is_read(path))
    if places:
        held = [f"{place or '.'}/ has {number}" for place, number in places.most_common()]
        remedy = "rename or move their folder" + (", or name it with --data_dir" if len(held) == 1 else "")
        return f"; pictures or volumes are elsewhere: {listed(held, SHOWN_FILES)}; {remedy}"
    return ""


def links_without_target(folder):
    """ "; 4 files are links without a target: ..." where there are such, for a message about a file that lacks."""
    links = walk(folder).links
    return f"; {LINK.line(links)}" if links else ""
