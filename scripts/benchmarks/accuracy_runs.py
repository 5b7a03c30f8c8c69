"""What every run of the accuracy protocol needs: programs in processes of their own, their figures, and the record."""

import csv
import json
import math
import os
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from measuring import machine_kind

from guided_diffusion.data.splits import group_of
from guided_diffusion.io.files import atomic_path
from guided_diffusion.io.texts import read_json
from guided_diffusion.runtime.console import console
from guided_diffusion.runtime.distributed import pick_precision
from guided_diffusion.runtime.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[1]
SECONDS = "seconds.json"  # in a run's folder, once it is trained
FIGURES = {  # of summary.json
    "dice": ("ensemble", "dice", "mean"),
    "sample_dice": ("sample", "mean"),
    "log_loss_per_area": ("probability", "log_loss_per_area", "mean"),
    "brier_per_area": ("probability", "brier_per_area", "mean"),
    "volume": ("probability", "expected_volume_ratio", "mean"),
    "sample_volume": ("probability", "sample_volume_ratio", "mean"),
    "ece": ("calibration", "ece"),
    "ged2_unbiased": ("diversity", "ged2_unbiased", "mean"),
    "ged2": ("diversity", "ged2", "mean"),
    "matched_iou": ("diversity", "matched_iou", "mean"),
    "copula_ged2": ("diversity", "control_copula_ged2_unbiased", "mean"),
    "copula_matched_iou": ("diversity", "control_copula_matched_iou", "mean"),
    "reader_dice": ("diversity", "reader_dice", "mean"),
    "reader_ged2": ("diversity", "reader_ged2_unbiased", "mean"),
    "majority_dice": ("diversity", "majority_rater_dice", "mean"),
    "majority_ged2": ("diversity", "majority_ged2_unbiased", "mean"),
    "mask_cldice": ("topology", "mask_cldice", "mean"),
    "sample_cldice": ("topology", "sample_cldice", "mean"),
    "mask_betti0": ("topology", "mask_betti0_error", "mean"),
    "sample_betti0": ("topology", "sample_betti0_error", "mean"),
    "mask_betti1": ("topology", "mask_betti1_error", "mean"),
    "sample_betti1": ("topology", "sample_betti1_error", "mean"),
    "mask_vi": ("topology", "mask_vi_background", "mean"),
    "sample_vi": ("topology", "sample_vi_background", "mean"),
}
PER_CASE = {  # columns of metrics.csv
    "dice": "dice",
    "sample_dice": "sample_dice",
    "log_loss": "log_loss",
    "ged2_unbiased": "ged2_unbiased",
    "matched_iou": "matched_iou",
    "copula_ged2": "control_copula_ged2_unbiased",
    "copula_matched_iou": "control_copula_matched_iou",
    "mask_cldice": "mask_cldice",
    "sample_cldice": "sample_cldice",
}


def machine():
    """The kind of machine that times belong to."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return machine_kind(pick_precision("auto", device), device)


# ---- programs ------------------------------------------------------------------------------------------------------


def call_script(options, script, words, **environment):
    """`call_program` of one of our scripts with this python."""
    return call_program(options, script, [sys.executable, str(SCRIPTS / script), *words], **environment)


def call_program(options, name, command, **environment):
    """Run a command in a process of its own, so that it has the machine's memory. Returns its seconds and those of the
    processor, of all its threads and processes together.

    name: of the program, for the message where it fails. environment: variables beside those of this process.
    The process gets Ctrl-C as well; it is given the time to save its checkpoint.
    """
    environment = {**os.environ, **environment}
    if options.threads:
        environment |= {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    began, used = time.perf_counter(), _processor_seconds()
    child = subprocess.Popen(command, env=environment)
    try:
        status = child.wait()
    except KeyboardInterrupt:
        child.wait()
        raise
    if status:
        raise UserError(f"{name} failed with status {status} (its message is above): {shlex.join(command[2:])}")
    return time.perf_counter() - began, _processor_seconds() - used


def _processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- figures -------------------------------------------------------------------------------------------------------


def outcome(results, dataset):
    """What a results folder says: the means `FIGURES`, seconds per case, and the figures `PER_CASE` of each case.

    dataset: its cases.
    """
    summary, manifest = read_json(results / "summary.json"), read_json(results / "manifest.json")
    groups = {case.volume or case.name: group_of(case) for case in dataset.cases}
    figures = {}
    for key, path in FIGURES.items():
        value = summary
        for part in path:
            value = None if value is None else value.get(part)
        figures[key] = None if value is None or math.isnan(value) else round(value, 5)
    with open(results / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cases = {key: [_number(row.get(column)) for row in rows] for key, column in PER_CASE.items()}
    return {
        "seconds_per_case": round(manifest["seconds"] / manifest["cases_sampled"], 3),
        "figures": figures,
        "groups": [groups[row["name"]] for row in rows],
        "cases": {key: values for key, values in cases.items() if any(value is not None for value in values)},
    }


def _number(text):
    return round(float(text), 5) if text else None


# ---- the record ----------------------------------------------------------------------------------------------------


def records(path):
    """The record's lines as dicts; none where there is no file yet."""
    path, lines = Path(path), []
    if not path.is_file():
        return lines
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError:
            raise UserError(f"{path}: line {number} is not JSON; repair or remove it") from None
    return lines


def append(path, line):
    """Add a line to the record; the file is replaced whole."""
    path = Path(path)
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    with atomic_path(path) as temporary:
        temporary.write_text(before + json.dumps(line) + "\n", encoding="utf-8")


def is_recorded(options, what):
    """Whether the record has a line of a run with these values; then it says so."""
    if any(all(line.get(key) == value for key, value in what.items()) for line in records(options.record)):
        console().info(f"=== {what['set']}, {what['contender']}, seed {what['seed']}: done before")
        return True
    return False
