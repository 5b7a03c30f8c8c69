"""Models on the Hugging Face Hub: hf://OWNER/NAME[@REVISION] becomes a local folder in huggingface_hub's cache."""

import re
from pathlib import Path

from ..runtime.errors import UserError
from ..runtime.extras import optional
from .texts import shown

HUB = "hf://"
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_PLACE = re.compile(rf"{HUB}({_PART}/{_PART})(?:@([\w][\w./-]{{0,199}}))?", re.ASCII)
_REASONS = {  # by the class of huggingface_hub's error
    "RevisionNotFoundError": "has no such revision; name a branch, a tag or a commit after @",
    "GatedRepoError": "is gated: ask for access on its page, then run: hf auth login",
    "RepositoryNotFoundError": "no such model, or a private one; check the name, or run: hf auth login",
    "LocalEntryNotFoundError": "cannot be reached, and is not in the cache; check the network",
    "OfflineModeIsEnabled": "is not in the cache, and HF_HUB_OFFLINE is set",
}


def is_on_hub(path):
    """Whether a path is of the form hf://..."""
    return str(path).startswith(HUB)


def fetch_from_hub(path, names):
    """The local `Path` of the folder with these files of a model on the Hub, fetched where new or changed.

    path: hf://OWNER/NAME, perhaps with @REVISION. names: of the files; those that the model lacks are not there. No
    other file is fetched. Raises `UserError` with the reason and a remedy.
    """
    place = _PLACE.fullmatch(str(path))
    if not place or ".." in str(path):
        raise UserError(f"{shown(str(path))}: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    hub = optional("huggingface_hub", "hub", "hf:// paths")
    try:
        return Path(hub.snapshot_download(place[1], revision=place[2], allow_patterns=list(names)))
    except OSError as error:
        if error.errno is not None and error.filename is not None:  # a full disk, no permission
            raise
        raise _refusal(path, error) from error
    except Exception as error:  # of the library and of the libraries below it
        raise _refusal(path, error) from error


def _refusal(path, error):
    kinds = [kind.__name__ for kind in type(error).__mro__]
    reason = next((text for name, text in _REASONS.items() if name in kinds), None)
    if reason is None:
        text = " ".join(str(error).split())[:200] or kinds[0]
        reason = f"cannot be fetched ({text}); check the name and the network"
    return UserError(f"{path}: {reason}")
