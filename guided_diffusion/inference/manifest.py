"""The schema of manifest.json, which sampling writes, and its one reader."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from ..config.fitted import MaskFits
from ..config.options import check_group_key, fold_of, ignored_values
from ..io.texts import has_control, read_json, shown
from ..runtime.errors import UserError

WholeNumber = Annotated[int, Meta(ge=0, le=10**12)]
Share = Annotated[float, Meta(ge=0, le=1)]
Scalar = str | int | float | bool | list[Any] | None


class SamplingSettings(TypedDict, total=False):
    """All that decides the masks, see `cli.sample.manifest_of`; manifests of earlier versions have some more."""

    num_ensemble: Annotated[int, Meta(ge=0, le=10**6)]
    fuse: str
    temperature: Annotated[float, Meta(ge=0, le=1e6)]
    weights: str
    seed: Annotated[int, Meta(ge=0)]
    save_samples: bool
    uncertainty_maps: bool
    debug: bool
    classes: str
    image_size: Annotated[int, Meta(ge=1, le=10**6)]
    precision: str
    sampler: str
    timesteps: Annotated[list[WholeNumber], Meta(max_length=10**6)]
    shares: Annotated[list[WholeNumber], Meta(max_length=100)]
    solver_order: int | None
    dynamic_threshold: float | bool | None
    symmetric: bool
    threshold: float | Annotated[list[float], Meta(max_length=65535)]
    max_misses: Share
    fill_holes: bool | Annotated[list[bool], Meta(max_length=65535)]
    keep_largest: bool | Annotated[list[bool], Meta(max_length=65535)]
    min_size: WholeNumber | Annotated[list[WholeNumber], Meta(max_length=65535)]
    scales: Annotated[list[float], Meta(max_length=100)]
    coupling_sigma: float | None  # by earlier versions
    published: str
    smoothness: Share
    clip_denoised: bool
    tile: bool | str


class DataSettings(TypedDict, total=False):
    """Options of data, in "data" and in "config"."""

    data_name: Annotated[str, Meta(min_length=1)]
    data_dir: str
    split: Literal["train", "val", "test", "all"]
    ct_window: str | None
    classes: str
    ignore_label: str
    val_fraction: Share
    test_fraction: Share
    fold: str
    split_seed: Annotated[int, Meta(ge=0)]
    group_key: str
    max_megapixels: Annotated[float, Meta(gt=0)]


class Calibration(TypedDict):
    """The fitted temperature, see `evaluation.temperature_fit`."""

    temperature: Annotated[float, Meta(gt=0, le=1e6)]
    cases: WholeNumber
    split: str


class CheckpointOptions(TypedDict, total=False):
    """The checkpoint's options by group."""

    data: DataSettings
    model: dict[str, Scalar]
    diffusion: dict[str, Scalar]
    train: dict[str, Scalar]
    device: dict[str, Scalar]
    loader: dict[str, Any]
    calibration: Calibration
    masks: MaskFits


class FurtherCheckpoint(TypedDict):
    """Another checkpoint than the first, of several that were sampled together. data: its options of data."""

    checkpoint: str
    step: WholeNumber
    data: DataSettings


class Manifest(TypedDict, total=False):
    """The whole file. checkpoint, checkpoint_sha256: of several checkpoints those of all, separated by commas."""

    status: str
    checkpoint: str
    checkpoint_sha256: str
    step: WholeNumber
    settings: SamplingSettings
    data: DataSettings
    config: CheckpointOptions
    further: Annotated[list[FurtherCheckpoint], Meta(max_length=100)]
    class_names: list[str]
    device: str
    processes: WholeNumber
    versions: dict[str, str]
    seconds: Annotated[float, Meta(ge=0)]
    cases_sampled: WholeNumber
    cases: WholeNumber
    unread: list[str]


def read_manifest(folder):
    """The manifest of a results folder, {} where it has none.

    Raises `UserError` that names the file and the place for a manifest of wrong types.
    """
    path = Path(folder) / "manifest.json"
    if not path.exists():
        return {}
    manifest = read_json(path, Manifest)
    further = [part for one in manifest.get("further", ()) for part in (one, one["data"])]
    for part in (manifest, manifest.get("data", {}), manifest.get("config", {}).get("data", {}), *further):
        for name in ("checkpoint", "data_dir"):
            if has_control(part.get(name, "")):
                raise UserError(f"{path}: {name} {shown(part[name])}: holds a control character; correct it")
        try:
            check_group_key(part.get("group_key", ""))
            fold_of(part.get("fold", ""))
            ignored_values(part.get("ignore_label", ""))
        except UserError as error:
            raise UserError(f"{path}: {error}; correct it, or restore the file as it was written") from None
    return manifest
