"""What evaluation fits for the masks of a checkpoint and stores in it, in config["masks"]: the schema."""

from typing import Annotated, Any, TypedDict

from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=10**12)]
OpenShare = Annotated[float, Meta(gt=0, lt=1)]
PerClass = Meta(min_length=1, max_length=65535)


class CleanupFit(TypedDict):
    """The clean-up of each class, see `evaluation.cleanup_fit`."""

    fill_holes: Annotated[list[bool], PerClass]
    keep_largest: Annotated[list[bool], PerClass]
    min_size: Annotated[list[Count], PerClass]
    cases: Count
    split: str


class ThresholdFit(TypedDict):
    """The threshold of each class, see `evaluation.risk_control`.

    values: of the probability before its temperature. max_misses: the share of lesion pixels that may be missed on
    average. groups: of each class, how many decided. settings: of sampling, as in a manifest, for which it holds.
    """

    values: Annotated[list[OpenShare], PerClass]
    max_misses: OpenShare
    groups: Annotated[list[Count], PerClass]
    split: str
    settings: dict[str, Any]


class MaskFits(TypedDict, total=False):
    """All of config["masks"]. fitted_on: the SHA-256 of the checkpoint's former states whose results were used."""

    cleanup: CleanupFit
    threshold: ThresholdFit
    fitted_on: Annotated[list[str], Meta(max_length=1000)]
