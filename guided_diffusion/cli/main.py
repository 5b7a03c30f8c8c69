"""The command `medsegdiff VERB`, also `python -m guided_diffusion VERB`: finds the main of the verb and calls it."""

import difflib
import importlib.metadata
import platform
import sys

from ..runtime.console import console
from ..runtime.errors import UserError
from ..runtime.program import MEDSEGDIFF, MODULE, door
from ..runtime.version import VERSION
from .verbs import check_main, demo_main, evaluate_main, export_main, plan_main, sample_main, train_main

VERBS = {  # the main of each verb, and what it does in one sentence
    "check": (check_main, "Check a data set: count its cases, list its problems, draw cases with their masks."),
    "plan": (plan_main, "Plan a training run: sizes, crops and steps from the data, with reasons."),
    "train": (train_main, "Train a model on images and masks."),
    "sample": (sample_main, "Segment images with a trained model and write a results folder."),
    "evaluate": (evaluate_main, "Score masks against the truth."),
    "export": (export_main, "Write a model to share it: weights, settings and a model card; also .pt2 and .onnx."),
    "demo": (demo_main, "Run all of this on phantom data, in minutes on a CPU."),
}
OTHER_WORDS = {  # for verbs, as other programs and the scripts here call them
    "check": "check_data data inspect verify",
    "plan": "segmentation_plan fingerprint configure",
    "train": "segmentation_train fit training",
    "sample": "segmentation_sample predict segment infer inference test sampling",
    "evaluate": "segmentation_eval eval score metrics evaluation",
    "export": "share convert save onnx safetensors upload push_to_hub",
    "demo": "example phantoms",
}


def main(argv=None):
    """Call the main of the verb that comes first, with the words after it; returns its exit status.

    Without a verb, or for --help, prints the verbs; for --version the versions; `help VERB` is `VERB --help`. Raises
    `UserError` for another word.
    """
    verb, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("--help", "-h", "--help_all", "--help-all", "help"):
        if not words:
            console().info(overview())
            return 0
        verb, words = words[0], ["--help" if verb in ("-h", "help") else verb]
    if verb in ("--version", "-V", "version"):
        console().info(versions())
        return 0
    if verb not in VERBS:
        raise UserError(unknown_verb(verb))
    return VERBS[verb][0](words)


def overview():
    """The verbs with a sentence each."""
    name = f"{MODULE if door() == MODULE else MEDSEGDIFF} VERB"
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {sentence}" for verb, (_, sentence) in VERBS.items())
    return (
        f"MedSegDiff: medical image segmentation with diffusion models, version {VERSION}\n\n"
        f"usage: {name} --flag value ...\n\n{verbs}\n\n"
        f"{name} --help shows the flags of a verb, --version the versions."
    )


def versions():
    """The versions of this program, of torch and of Python, one line; torch is not imported for it."""
    return f"medsegdiff {VERSION}, torch {importlib.metadata.version('torch')}, Python {platform.python_version()}"


def unknown_verb(word):
    """The line for a word that is no verb."""
    if word.startswith("-"):
        return f"{word}: comes before the verb; write the verb first, one of {', '.join(VERBS)}"
    words = {other: verb for verb, others in OTHER_WORDS.items() for other in (verb, *others.split())}
    close = difflib.get_close_matches(word.lower().replace("-", "_").removesuffix(".py"), words, n=1)
    meant = f"did you mean {words[close[0]]}?" if close else f"use one of {', '.join(VERBS)}"
    return f"{word[:60]}: no such verb; {meant}"
