"""Medical image segmentation with diffusion models: MedSegDiff, MedSegDiff-V2 and the tools around them.

`from guided_diffusion import Segmenter` is the door for other programs; see `segmenter`.
"""

from .runtime.version import VERSION as __version__

__all__ = ["Segmenter", "__version__"]


def __getattr__(name):
    if name != "Segmenter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .inference.segmenter import Segmenter  # torch takes seconds to import, which the package itself need not

    return Segmenter
