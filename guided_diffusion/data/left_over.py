"""Why a file below data_dir is in no case, and what to do about it: the reasons, and the kinds of files."""

import re
from dataclasses import dataclass

from ..runtime.console import counted, listed
from .splits import split_of

SHOWN_FILES = 3  # files that a line names


@dataclass(frozen=True)
class Reason:
    """Why a file is in no case. one, many: what follows "1 file " and "2 files ". remedy: what to do, "" for nothing.
    is_data: whether the file looks like data, so that check_data calls it an error."""

    one: str
    many: str
    remedy: str = ""
    is_data: bool = True

    def line(self, names):
        """A line that names up to `SHOWN_FILES` of the files and says what to do."""
        what, remedy = self.many, self.remedy
        if len(names) == 1:
            remedy = remedy.replace("names of their images", "name of its image")
            what, remedy = self.one, remedy.replace("them", "it").replace("their", "its")
        text = f"{counted(len(names), 'file')} {what}: {listed(names, SHOWN_FILES)}"
        return f"{text}; {remedy}" if remedy else text

    def short(self, names):
        """ "4 links without a target, as images/e.png", for the one line of training and sampling."""
        return f"{self.counted(names)}, as {names[0]}"

    def counted(self, names):
        """ "1 link without a target", "2 links without a target"."""
        return f"{len(names)} {re.sub(r'^(is|are) (an? )?', '', self.one if len(names) == 1 else self.many)}"


LINK = Reason(
    "is a link without a target",
    "are links without a target",
    "fetch them (git annex get, git lfs pull) or remove them",
)
CLOSED = Reason("is a folder that cannot be opened", "are folders that cannot be opened", "change their permissions")
ORPHAN = Reason(
    "is a mask that belongs to no image",
    "are masks that belong to no image",
    "give them the names of their images, or remove them",
)
SECOND = Reason(
    "is a second mask of an image", "are second masks of an image", "keep one; several raters have a folder each"
)
PART = Reason(
    "is in a folder that looks like a part of the split and is none",
    "are in folders that look like a part of the split and are none",
    "rename the folder to train/, val/ or test/, or move it away",
)
COMPRESSED = Reason("is compressed", "are compressed", "unpack them (NIfTI may stay .nii.gz)")
EMPTY_FILE = Reason("is empty (0 bytes)", "are empty (0 bytes)", "copy them again or remove them")
NAMELESS = Reason(
    "among the images has no suffix",
    "among the images have no suffix",
    "DICOM files often look so: put the slices of each series into a folder, images/NAME/",
)
UNUSED = Reason("is in no case", "are in no case", "move them to where the layout has its images and masks, or away")
OWN_UNUSED = Reason(
    "is in no case",
    "are in no case",
    "give each a case in find_cases, or name what is no data in the loader's other_files",
)
DOCUMENT = Reason("is a table or document", "are tables and documents", is_data=False)
ARCHIVE = Reason("is an archive, not unpacked", "are archives, not unpacked", is_data=False)
HIDDEN = Reason("is hidden", "are hidden", is_data=False)
OTHER = Reason("is of another kind", "are of other kinds", is_data=False)

DOCUMENTS = set(
    ".txt .csv .tsv .pdf .xlsx .xls .ods .doc .docx .md .rst .html .htm .rtf .json .jsonl .xml .yaml .yml .toml .log "
    ".bval .bvec .py .ipynb .m .sh".split()
)
ARCHIVES = set(".zip .tar .tgz .gz .bz2 .xz .7z .rar .zst".split())

# Images and volumes of kinds that no loader of this package reads: {suffix: how they become what is read}.
FOREIGN_KINDS = {
    ".raw .zraw .mgz .mgh .mnc .img .hdr .par .rec .vtk .vti .gipl .mrc": "export NIfTI (.nii.gz)",
    ".jp2 .j2k .jpx .heic .heif .avif .jxl .psd .svg .eps .cr2 .nef .dng .gif .webp .ppm .pgm .pbm .pnm .jfif "
    ".jpe .tga .exr": "save them as PNG or TIFF",
    ".svs .ndpi .mrxs .scn .czi .nd2 .lif .lsm .oib .vsi .qptiff": "export tiles as PNG",
    ".mp4 .avi .mov .mkv .wmv": "export the frames as PNG",
    ".npy .npz .h5 .hdf5 .mat .pt .pkl": "write a loader of your own",
}
FOREIGN = {suffix: remedy for suffixes, remedy in FOREIGN_KINDS.items() for suffix in suffixes.split()}
ARRAYS = {".npy", ".npz", ".h5", ".hdf5", ".mat", ".pt", ".pkl", ".raw", ".zraw", ".rec"}  # of data only beside cases


def foreign(suffix):
    """The `Reason` of files with a suffix in `FOREIGN`."""
    kind = f"of a kind that is not read ({suffix})"
    return Reason(f"is {kind}", f"are {kind}", FOREIGN[suffix])


MASK_WORDS = re.compile(r"mask|label|seg|annotation|ground[-_ ]?truth|manual|(?<![a-z])gts?(?![a-z])", re.IGNORECASE)
COPY_MARK = re.compile(r"[-_ .]*(\(?\d+\)?|copy|old|new|mask|seg)$", re.IGNORECASE)  # what a copy's name adds
PART_WORDS = re.compile(
    r"(?<![a-z])(trn|tst|dev|hold[-_ ]?out|fold|split|(train|val|test|eval)(ing|id|uation|idation|val)?)"
    r"[-_ ]?((data)?set|data|images?|imgs?)?(?![a-z])",
    re.IGNORECASE,
)


def looks_like_a_part(name):
    """Whether a folder's name, such as train2 or valid_images, looks like a split's and is none."""
    return split_of(name) is None and PART_WORDS.search(name) is not None
