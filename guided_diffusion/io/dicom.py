"""DICOM: a folder of slices as one volume, a file of several frames, or a single image."""

import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..runtime.console import counted
from ..runtime.errors import UserError
from ..runtime.extras import optional
from .files import content_of, is_found, is_hidden
from .stored_values import LPS_TO_RAS, LazyValues, affine_of, as_nifti
from .texts import shown

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
PREAMBLE, MARK = 128, b"DICM"
DEFLATED = "1.2.840.10008.1.2.1.99"  # the data set as one deflate stream, which would be unpacked without a limit
MEASURED = ("CT", "PT", "NM")  # modalities whose values are quantities, whichever of black and white shows them
UNEVEN = 0.05  # of the distance between slices: how far one may lie from its place
NOT_PARALLEL = 1e-3  # difference of direction cosines, which are written with few digits
SHOWN_SERIES = 3
GREY_KINDS = ("MONOCHROME1", "MONOCHROME2")
HEADER_TAGS = (
    *("SeriesInstanceUID", "SeriesDescription", "Modality", "SOPClassUID", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness"),
    *("SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence",),
)


@dataclass(frozen=True)
class Frame:
    """One slice: its file, its number in it, its size (columns, rows), its place in LPS (mm) and how to rescale it.

    position: [3] or None; directions: [3, 2], the steps along a row and along a column in mm.
    """

    path: Path
    index: int | None
    size: tuple[int, int]
    dtype: str
    series: str
    position: np.ndarray | None
    directions: np.ndarray
    thickness: float
    slope: float
    intercept: float
    inverted_from: int | None  # the sum of the least and the largest value, where white is 0


@dataclass(frozen=True)
class Series:
    """The frames of a volume in their order along the normal of the slices, and its affine [4, 4] in RAS."""

    frames: tuple[Frame, ...]
    affine: np.ndarray


# ---- what is DICOM ----------------------------------------------------------------------------------------------


def is_series(path):
    """Whether a folder holds the slices of a volume as DICOM files, by the first of its files."""
    try:
        return os.path.isdir(path) and _is_series(os.fspath(path), os.stat(path).st_mtime_ns)
    except OSError:
        return False


@lru_cache(maxsize=4096)
def _is_series(folder, _time):
    for entry in _files_in(folder):
        if _may_be_dicom(entry.name):
            return _has_mark(entry.path) and _is_slice(entry.path)
    return False


def _is_slice(path):
    """Whether a DICOM file is one slice with a place in space; True where its header cannot be read, which opening
    it says."""
    try:
        with _reading(path):
            header = _header(path)
            return "ImagePositionPatient" in header and int(header.get("NumberOfFrames", 1) or 1) == 1
    except UserError:
        return True


def _files_in(folder):
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not is_hidden(entry.name) and is_found(entry.is_file)]
    return sorted(found, key=lambda entry: entry.name)


def _may_be_dicom(name):
    """Whether a file's name is one of DICOM: its suffix, none, or the numbers of an identifier."""
    suffix = os.path.splitext(name)[1].lower()
    return name.upper() != "DICOMDIR" and (suffix in ("", *DICOM_SUFFIXES) or suffix[1:].isdigit())


def _has_mark(path):
    with open(path, "rb") as file:
        return file.read(PREAMBLE + len(MARK))[PREAMBLE:] == MARK


# ---- reading ----------------------------------------------------------------------------------------------------


def open_dicom(path):
    """nibabel's image of a series' folder or of a file, whose values are decoded when they are asked for.

    Slices are sorted by their place along their normal, their values are rescaled (HU in CT), and the affine is RAS in
    mm; slices that lie obliquely one upon the other, as with a tilted gantry, give it a shear. Pictures in which white
    is 0 (MONOCHROME1) are inverted, unless their values are quantities. Raises `UserError` for several series,
    slices that lack, repeat or differ in size, colours, films, and damaged files.
    """
    path = Path(path)
    if path.is_dir():
        stamps = tuple((entry.name, status.st_size, status.st_mtime_ns) for entry, status in _stamped(path))
        found = _series(path, stamps)
    else:
        status = path.stat()
        found = _series(path, ((path.name, status.st_size, status.st_mtime_ns),))
    frames, first = found.frames, found.frames[0]
    is_stored = all(frame.slope == 1 and frame.intercept == 0 for frame in frames)
    same = {frame.dtype for frame in frames}
    dtype = np.dtype(first.dtype if len(same) == 1 else "i4") if is_stored else np.dtype(np.float32)

    def decode(depth):
        values = np.empty((*first.size, len(frames)), dtype, order="F")
        for k, frame in enumerate(frames[:depth]):
            values[..., k] = _pixels_of(frame).T if is_stored else _rescaled(frame)
        return values

    return as_nifti(LazyValues((*first.size, len(frames)), dtype, decode), found.affine)


def _stamped(folder):
    return [(entry, entry.stat()) for entry in _files_in(folder) if _may_be_dicom(entry.name)]


@lru_cache(maxsize=64)  # a volume is opened several times, and the headers of its slices take a second
def _series(path, _stamps):
    files = [path / name for name, *_ in _stamps] if path.is_dir() else [path]
    headers = [(file, _header(file)) for file in files]
    images = [(file, header) for file, header in headers if "Rows" in header]  # not reports, plans and outlines
    if not images:
        raise UserError(f"{path}: holds no DICOM image; export the images of the series")
    _check_one_series(path, images)
    frames = [frame for file, header in images for frame in _frames(file, header)]
    _check_alike(frames)
    if len(frames) > 1:
        frames = _sorted(path, frames)
    return Series(tuple(frames), _affine_of_frames(path, frames))


@contextmanager
def _without_warnings():
    """A context without pydicom's warnings about values that the standard does not allow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _header(path):
    """pydicom's data set of a file without its pixels."""
    pydicom = optional("pydicom", "medical", f"{path}: DICOM")
    if not _has_mark(path):
        other = content_of(path, "DICOM file")
        raise UserError(
            f"{path}: {other or 'is truncated or damaged, or is no DICOM file (it lacks the mark DICM); copy it again'}"
        )
    try:
        with _without_warnings():
            if pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED:
                raise UserError(
                    f"{path}: is deflated as a whole; save it with another transfer syntax (gdcmconv --raw)"
                )
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(HEADER_TAGS))
    except (UserError, PermissionError):
        raise
    except Exception as error:  # pydicom raises nearly anything on damaged bytes
        raise UserError(f"{path}: is truncated or damaged ({_reason(error)}); copy it again") from error


@contextmanager
def _reading(path):
    """A context in which any error of an element, which pydicom decodes when it is asked for, is a `UserError`."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        raise UserError(f"{path}: its DICOM header is damaged ({_reason(error)}); export it again") from error


def _reason(error):
    return " ".join(str(error).split())[:160] or type(error).__name__


def _check_one_series(path, images):
    """Raise `UserError` where files belong to several series. images: (file, header) pairs."""
    series = {}
    for file, header in images:
        with _reading(file):
            name = header.get("SeriesDescription", "")
            series.setdefault(header.get("SeriesInstanceUID", ""), []).append(name)
    if len(series) > 1:
        named = [f"{counted(len(names), 'file')} of {shown(str(names[0] or '?'))!r}" for names in series.values()]
        more = ", ..." if len(series) > SHOWN_SERIES else ""
        raise UserError(
            f"{path}: holds {len(series)} DICOM series ({', '.join(named[:SHOWN_SERIES])}{more}); move each into a "
            "folder of its own"
        )


def _frames(path, header):
    """The `Frame`s of a file. Raises `UserError` for colours, films, and headers without what a slice needs."""
    with _reading(path):
        count = int(header.get("NumberOfFrames", 1) or 1)
        if header.get("PhotometricInterpretation") not in GREY_KINDS or int(header.get("SamplesPerPixel", 1) or 1) != 1:
            colours = shown(str(header.get("PhotometricInterpretation", "no grey values")))
            raise UserError(f"{path}: is a DICOM file in colour ({colours}); export it as PNG")
        per_frame = header.get("PerFrameFunctionalGroupsSequence", ())
        if count > 1 and len(per_frame) != count:
            raise UserError(
                f"{path}: is a DICOM film of {count} frames without places in space; export the frames as PNG"
            )
        shared = next(iter(header.get("SharedFunctionalGroupsSequence", ())), None)
        return [
            _frame(path, header, [group for group in (own, shared) if group is not None], k if count > 1 else None)
            for k, own in enumerate(per_frame or (None,))
        ]


def _frame(path, header, groups, index):
    """The `Frame` of a file, or of one of its frames with its own and the shared functional groups."""

    def value(name, sequence, default=None):
        inner = [item for group in groups for item in group.get(sequence, ())]
        return next((found for part in (*inner, header) if (found := part.get(name)) is not None), default)

    position = value("ImagePositionPatient", "PlanePositionSequence")
    orientation = value("ImageOrientationPatient", "PlaneOrientationSequence")
    spacing = value("PixelSpacing", "PixelMeasuresSequence") or header.get("ImagerPixelSpacing") or (1, 1)
    between = value("SpacingBetweenSlices", "PixelMeasuresSequence") or value("SliceThickness", "PixelMeasuresSequence")
    cosines = np.array([float(number) for number in orientation or (1, 0, 0, 0, 1, 0)]).reshape(2, 3).T
    between_rows, between_columns = map(float, spacing)
    if position is not None and orientation is None:
        raise ValueError("it has a position and no orientation")
    bits, is_signed = int(header.BitsAllocated), bool(header.get("PixelRepresentation", 0))
    if bits not in (8, 16, 32):
        raise UserError(f"{path}: has {bits} bits for each pixel, no image of 8, 16 or 32; export it again")
    is_inverted = header.PhotometricInterpretation == GREY_KINDS[0] and header.get("Modality") not in MEASURED
    transform = "PixelValueTransformationSequence"
    slope, intercept = (float(value(name, transform, n)) for name, n in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    frame = Frame(
        path=Path(path),
        index=index,
        size=(int(header.Columns), int(header.Rows)),
        dtype=f"{'i' if is_signed else 'u'}{bits // 8}",
        series=str(header.get("SeriesInstanceUID", "")),
        position=None if position is None else np.array([float(number) for number in position]),
        directions=cosines * (between_columns, between_rows),
        thickness=float(between or 1) or 1.0,
        slope=slope,
        intercept=intercept,
        inverted_from=None if not is_inverted else -1 if is_signed else 2 ** int(header.get("BitsStored", bits)) - 1,
    )
    place = [frame.directions, [slope, intercept, frame.thickness], *([] if position is None else [frame.position])]
    if min(frame.size) < 1 or not all(np.isfinite(values).all() for values in place) or not frame.directions.any():
        raise ValueError("its size or its place makes no sense")
    return frame


def _check_alike(frames):
    """Raise `UserError` for slices of different sizes, directions or spacings."""
    first = frames[0]
    for frame in frames[1:]:
        if frame.size != first.size:
            sizes = ["x".join(map(str, one.size)) for one in (frame, first)]
            raise UserError(
                f"{frame.path}: has {sizes[0]} pixels, but {first.path.name} of the same series has {sizes[1]}; put "
                "them into folders of their own"
            )
        scale = np.linalg.norm(first.directions, axis=0)
        if np.abs(frame.directions - first.directions).max() > NOT_PARALLEL * scale.max():
            raise UserError(
                f"{frame.path}: lies in another plane, or has another spacing, than {first.path.name} of the same "
                "series; put them into folders of their own"
            )


def _normal(frame):
    normal = np.cross(*frame.directions.T)
    return normal / np.linalg.norm(normal)


def _sorted(path, frames):
    """The frames by their place along the normal. Raises `UserError` for repeated and missing ones."""
    lacking = next((frame for frame in frames if frame.position is None), None)
    if lacking is not None:
        raise UserError(f"{lacking.path}: has no ImagePositionPatient, so that its place among the slices is unknown")
    normal = _normal(frames[0])
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    places = np.array([frame.position @ normal for frame in frames])
    steps = np.diff(places)
    usual = float(np.median(steps))
    margin = UNEVEN * max(usual, 0.01)

    def named(k):
        pair = frames[k : k + 2]
        return " and ".join(
            f"{one.path.name}{f' frame {one.index + 1}' if one.index is not None else ''}" for one in pair
        )

    same = np.flatnonzero(steps <= margin)
    if len(same):
        raise UserError(
            f"{path}: {counted(len(same), 'slice')} {'lies' if len(same) == 1 else 'lie'} at the place of another, as "
            f"{named(same[0])}: a copy, or "
            "a series of several times or contrasts; keep one slice for each place"
        )
    far = np.flatnonzero(np.abs(steps - usual) > margin)
    if len(far):
        raise UserError(
            f"{path}: {named(far[0])} lie {steps[far[0]]:.3g} mm apart, the other slices {usual:.3g} mm: slices are "
            "missing, or the series has several spacings; copy it again, or convert it to NIfTI with even slices"
        )
    positions = np.array([frame.position for frame in frames])
    line = positions[0] + np.linspace(0, 1, len(frames))[:, None] * (positions[-1] - positions[0])
    if np.abs(positions - line).max() > max(margin, 0.1 * np.linalg.norm(frames[0].directions, axis=0).min()):
        raise UserError(f"{path}: its slices do not lie along a line; convert it to NIfTI")
    return frames


def _affine_of_frames(path, frames):
    first, count = frames[0], len(frames)
    directions = first.directions
    if not np.linalg.norm(np.cross(*directions.T)):
        raise UserError(f"{first.path}: its rows and columns have one direction; export it again")
    step = (frames[-1].position - first.position) / (count - 1) if count > 1 else _normal(first) * first.thickness
    origin = np.zeros(3) if first.position is None else first.position
    return LPS_TO_RAS @ affine_of(np.column_stack([directions, step]), origin)


def _pixels_of(frame):
    """The stored values of a frame, [rows, columns]. Raises `UserError` for a damaged file and a lacking decoder."""
    pixels = optional("pydicom.pixels", "medical", f"{frame.path}: DICOM")
    try:
        with _without_warnings():
            values = pixels.pixel_array(frame.path, index=frame.index)
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        if isinstance(error, PermissionError):
            raise
        raise UserError(f"{frame.path}: {_why_not_decoded(frame.path, error)}") from error
    if values.shape != frame.size[::-1]:
        raise UserError(
            f"{frame.path}: is truncated or damaged (its pixels have the shape {values.shape}); copy it again"
        )
    return (
        values if frame.inverted_from is None else (frame.inverted_from - values.astype(np.int64)).astype(values.dtype)
    )


def _why_not_decoded(path, error):
    """Why the pixels of a file cannot be decoded, and what to do."""
    import pydicom

    try:
        syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
        decoder = pydicom.pixels.get_decoder(syntax)
    except Exception:  # a syntax that pydicom does not know, or none
        return f"is truncated or damaged ({_reason(error)}); copy it again"
    if decoder.is_available:
        return f"is truncated or damaged ({_reason(error)}); copy it again"
    return (
        f"is compressed as {shown(syntax.name)}, for which a decoder is not installed; pip install 'pylibjpeg[all]' "
        "(or python-gdcm), or decompress it (gdcmconv --raw)"
    )


def _rescaled(frame):
    return _pixels_of(frame).T * np.float32(frame.slope) + np.float32(frame.intercept)
