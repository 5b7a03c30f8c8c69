"""The model card: a Markdown page with the data, configuration, metrics, calibration and limits of a run."""

import math
from pathlib import Path

from ..data.classes import BINARY
from ..evaluation.metrics import metric_names
from ..evaluation.summary import CALIBRATION, DEFINITIONS, LEFT_OUT
from ..evaluation.summary_table import figure_name, member_lines, metric_label, miss_lines
from ..evaluation.uncertainty import SCORES
from ..io.escaping import is_place, markdown_code, markdown_text, place_name, with_short_places
from ..io.files import atomic_path
from ..io.storage import is_remote
from ..runtime.console import counted
from ..runtime.errors import UserError
from .figures import LEAST_PATIENTS, interval_text, patients_of, with_sure_intervals

PAPERS = {
    "v1": """@inproceedings{wu2024medsegdiff,
  title     = {{MedSegDiff}: Medical Image Segmentation with Diffusion Probabilistic Model},
  author    = {Wu, Junde and Fu, Rao and Fang, Huihui and Zhang, Yu and Yang, Yehui and Xiong, Haoyi and Liu, Huiying
               and Xu, Yanwu},
  booktitle = {Medical Imaging with Deep Learning},
  year      = {2024},
  note      = {arXiv:2211.00611}
}""",
    "v2": """@inproceedings{wu2024medsegdiffv2,
  title     = {{MedSegDiff-V2}: Diffusion-Based Medical Image Segmentation with Transformer},
  author    = {Wu, Junde and Ji, Wei and Fu, Huazhu and Xu, Min and Jin, Yueming and Xu, Yanwu},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2024},
  note      = {arXiv:2301.11798}
}""",
}
NO_DEVICE = "- This is research software, not a medical device. Its masks are not a diagnosis."
PARTS = {"train": "the training part", "val": "the validation part", "test": "the test part", "all": "all cases"}
UNLISTED_OPTIONS = (
    "data_dir",
    "out_dir",
    "resume_checkpoint",
    "num_workers",
    "cache_dir",
    "gpu_dev",
    "multi_gpu",
    "val_dir",
    "init_from",
)


def write_card(out_dir, summary, manifest, dataset, part, leak=None):
    """Write model_card.md to `out_dir`, whole or not at all; returns its path.

    summary: of `summary.summary_of`. manifest: of the results, or {} for masks of another program. dataset: the
    evaluated one. part: see `division.part_of`. leak: the line of `compatibility.leakage_warning`, or None.
    """
    config = manifest.get("config", {})
    parts = [
        f"# Model card: {_card_title(manifest, summary)}",
        _data(config, manifest, dataset, part, summary),
        _configuration(config, manifest),
        _metrics(with_sure_intervals(summary, patients_of(summary))),
        _calibration(summary, config, manifest.get("settings", {})),
        _limits(summary, part, leak and with_short_places(leak, *_places_of(config, dataset))),
        _definitions(summary),
        _citation(config),
    ]
    path = Path(out_dir) / "model_card.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def shown_checkpoint(manifest, results_dir=None):
    """A manifest's checkpoint without the folders above it: its path from the run's folder that holds the results, else
    its name; several are joined by commas, and named with their run's folder, since their files are often called alike.
    """
    run = None if results_dir is None else Path(results_dir).resolve().parent
    shown, paths = [], str(manifest.get("checkpoint")).split(",")
    for path in paths:
        is_own = run is not None and not is_remote(path) and Path(path).resolve().is_relative_to(run)
        name = place_name(path)
        if len(paths) > 1 and path.endswith(".pt") and "/" in path:
            name = "/".join(path.split("/")[-2:])
        shown.append(str(Path(path).resolve().relative_to(run)) if is_own else name)
    return ",".join(shown)


def _places_of(config, dataset):
    """The folders that a warning about the data may name."""
    stored = config.get("data", {}).get("data_dir")
    return [stored or "", str(dataset.data_dir), str(Path(dataset.data_dir).resolve())]


def _card_title(manifest, summary):
    version = manifest.get("config", {}).get("model", {}).get("version")
    names = {"v1": "MedSegDiff", "v2": "MedSegDiff-V2", "unet": "plain U-Net"}
    own = summary["class_names"] != list(BINARY.names)  # a name that says something
    return names.get(version, "segmentation") + (f" for {_class_names(summary)}" if own else "")


def _class_names(summary):
    return ", ".join(map(markdown_text, summary["class_names"]))


def _data(config, manifest, dataset, part, summary):
    recorded, further = manifest.get("data", {}), [one["data"] for one in manifest.get("further", ())]
    trained = [data for data in (config.get("data", {}), *further) if data]
    lines = ["## Data", "", *dict.fromkeys(map(_trained_on, trained))]
    cases = summary["ensemble"]["cases"]
    groups = f" of {counted(summary['groups'], 'group')} (patients)" if summary["groups"] else ""
    name = markdown_code(place_name(recorded.get("data_name", type(dataset).__name__)))
    place = markdown_code(place_name(Path(dataset.data_dir).resolve()))
    lines.append(f"- Evaluated on {counted(cases, 'case')}{groups} of {name} from {place}: {PARTS[part]}.")
    raters = len(summary["raters"])
    lines.append(f"- Classes: {_class_names(summary)}. Raters of each case: {max(raters, 1)}.")
    return "\n".join(lines)


def _trained_on(data):
    """The line about a checkpoint's own options of data."""
    shares = ((data.get("val_fraction"), "validation"), (data.get("test_fraction"), "testing"))
    parts = [f"fold {data['fold']} of the groups for validation"] if data.get("fold") else []
    held = " and ".join([*parts, *(f"{share:g} of the groups for {what}" for share, what in shares if share)])
    held_out = f", with {held} held out" if held else ""
    name, place = (place_name(data.get(key, "")) for key in ("data_name", "data_dir"))
    origin = f" from {markdown_code(place)}" if place else ""
    return f"- Trained on {markdown_code(name)}{origin}{held_out}."


def _configuration(config, manifest):
    if not config:
        return ""
    lines = ["## Configuration", ""]
    names, digests = (str(manifest.get(key, "")).split(",") for key in ("checkpoint", "checkpoint_sha256"))
    if len(names) != len(digests):  # a comma in the name of a single one
        names = [shown_checkpoint(manifest)]
    steps = [one.get("step") for one in (manifest, *manifest.get("further", ()))]
    for name, digest, step in zip(names, digests, steps, strict=False):
        shown = markdown_code(place_name(name)), markdown_text(step), markdown_code(digest[:16])
        lines.append("- Checkpoint {}, step {}, SHA-256 {}...".format(*shown))
    lines += ["- The options below are those of the first checkpoint."] if len(steps) > 1 else []
    versions = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    lines.append(f"- Sampled on {markdown_text(manifest.get('device'))} with {markdown_text(versions)}.")
    for group in ("model", "diffusion", "train"):
        lines.append(f"- {group.capitalize()}: {_option_list(config.get(group, {}))}.")
    lines.append(f"- Sampling: {_option_list(manifest.get('settings', {}))}.")
    return "\n".join(lines)


def _option_list(values):
    listed = {
        name: value for name, value in values.items() if name not in UNLISTED_OPTIONS and value not in ("", None, [])
    }
    if isinstance(listed.get("timesteps"), list):
        listed["timesteps"] = f"{len(listed['timesteps'])} steps"
    shown = {name: place_name(value) if is_place(value) else value for name, value in listed.items()}
    return ", ".join(markdown_text(with_short_places(f"{name} {value}")) for name, value in shown.items())


def _metrics(summary):
    parts = ["## Metrics", _table(summary, summary)]
    if patients_of(summary) < LEAST_PATIENTS:
        parts.append(f"No intervals: there are fewer than {LEAST_PATIENTS} patients.")
    parts += [f"{markdown_text(line)}." for line in miss_lines(summary) + member_lines(summary)]
    for name, part in summary.get("classes", {}).items():
        parts += [f"### {markdown_text(name)}", _table(part, summary)]
    sizes = summary.get("ensemble_size")
    if sizes:
        table = "\n".join(
            f"| {n} | {_decimal(one['mean'])} | {_interval(one)} |"
            for n, one in zip(sizes["sizes"], sizes["dice"], strict=True)
        )
        head = "| members | Dice | 95 % interval |\n|---|---|---|\n"
        parts += ["### Size of the ensemble", f"{head}{table}\n\nNo longer grows from {sizes['enough']} members on."]
    return "\n\n".join(parts)


def _table(part, summary):
    names = metric_names(summary["nsd_tolerances"])
    described = {metric_label(name, summary): part["ensemble"][name] for name in names}
    described |= {"Dice of one member": part["sample"], "Dice of the coarse mask": part["coarse"]}
    for name, one in {**part["probability"], **part["diversity"], **part.get("topology", {})}.items():
        described[metric_label(name, summary)] = one
    lines = ["| | mean | 95 % interval | median | std | n |", "|---|---|---|---|---|---|"]
    for label, one in described.items():
        if one["n"]:
            figures = [
                _decimal(one["mean"]),
                _interval(one),
                _decimal(one["median"]),
                _decimal(one["std"]),
                str(one["n"]),
            ]
            lines.append(f"| {markdown_text(label)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _calibration(summary, config, settings):
    figures, lines = summary["calibration"], []
    shown = [name for name in CALIBRATION if not math.isnan(figures[name])]
    if shown:
        lines += ["## Calibration and uncertainty", "", "| over all pixels | |", "|---|---|"]
        lines += [f"| {figure_name(name)} | {_decimal(figures[name])} |" for name in shown]
        lines.append("")
    fitted = config.get("calibration")
    if fitted and settings.get("temperature", fitted["temperature"]) == fitted["temperature"]:
        lines.append(
            f"- Probabilities are scaled with the temperature {fitted['temperature']:g}, which was fitted on "
            f"{counted(fitted['cases'], 'mask')} of the split {markdown_text(fitted['split'])}."
        )
    for name in SCORES:
        score = summary["uncertainty"][name]
        if score["judged"] > 1:
            label = name.replace("_", " ").capitalize()
            lines.append(
                f"- {label} and error: rank correlation {_decimal(score['spearman'])}, area "
                f"under the retention curve {_decimal(score['area'])} (random order {_decimal(score['random'])}, best "
                f"order {_decimal(score['oracle'])})."
            )
    return "\n".join(lines)


def _limits(summary, part, leak):
    ensemble, lines = summary["ensemble"], ["## Limits", ""]
    lines.append(NO_DEVICE)
    lines.append(
        f"- Measured on {counted(ensemble['cases'], 'case')} of one data set. Other scanners, centres, patients and "
        "protocols may give other figures; the intervals do not cover that."
    )
    if summary["groups"] is None:
        lines.append(
            "- The patient of each case is unknown. Where patients have several cases, the intervals are too small."
        )
    if leak:
        lines.append(f"- {markdown_text(leak.removeprefix('warning: '))}")
    if part == "val":
        lines.append(
            "- These are validation cases. The figures are too good where choices were made on them: best.pt is one."
        )
    for which, text in (
        ("prediction", "the prediction is empty, but the truth is not"),
        ("truth", "the truth is empty, but the prediction is not"),
    ):
        if ensemble[f"{which}_empty"]:
            lines.append(f"- In {counted(ensemble[f'{which}_empty'], 'mask')} {text}.")
    lines += [f"- Left out: {counted(summary[key], 'case')} {text}." for key, text in LEFT_OUT.items() if summary[key]]
    return "\n".join(lines)


def _definitions(summary):
    tolerances = " and ".join(f"{tolerance:g}" for tolerance in summary["nsd_tolerances"])
    return (
        f"## Definitions\n\nEvery figure is defined in {DEFINITIONS} of guided_diffusion. Tolerance of the surface "
        f"Dice: {tolerances} {summary['hd95_unit']}. A lesion counts as found from an IoU of {summary['lesion_iou']:g}."
    )


def _citation(config):
    version = config.get("model", {}).get("version")
    papers = [PAPERS[version]] if version in PAPERS else [] if version else list(PAPERS.values())
    return "\n\n".join(["## Citing", "```bibtex\n" + "\n\n".join(papers) + "\n```"]) if papers else ""


def _decimal(value):
    return "–" if math.isnan(value) else f"{value:.4f}"


def _interval(described):
    return interval_text(described) or "–"


# ---- the card of an exported model ---------------------------------------------------------------------------------

FRONT_MATTER = """---
library_name: guided_diffusion
pipeline_tag: image-segmentation
tags:
- image-segmentation
- medical-imaging
- uncertainty
- {tag}
# license: state yours; it depends on your data too
---"""
TAGS = {"v1": "medsegdiff", "v2": "medsegdiff-v2", "unet": "unet"}
OF_SUMMARY = ("nsd_tolerances", "lesion_iou", "hd95_unit", "class_names", "calibration", "uncertainty")


def hub_card(checkpoint, weights, results=None, graphs=()):
    """The README.md of an exported model, with the lines at its top that hubs read; it names no folder and no case.

    weights: what they are, "model" or the decay rate of their average. results: the summary and the manifest of
    results that the model made, or None. graphs: the descriptions of its graphs, by name.
    """
    config, version = checkpoint.config, checkpoint.config["model"]["version"]
    summary, manifest = results or ({}, {})
    names = {"class_names": list(checkpoint.class_names)}
    parts = [
        FRONT_MATTER.format(tag=TAGS[version]),
        f"# {_card_title({'config': config}, names)}",
        "License: not stated yet. Add `license:` to the lines at the top, and say here whose the data are.",
        _usage(config),
        _exported_facts(checkpoint, weights, names, graphs),
    ]
    if summary:
        missing = [name for name in OF_SUMMARY if name not in summary]
        if missing:
            raise UserError(f"summary.json: has no {missing[0]}; evaluate the results again, which writes it anew")
        summary, split = _with_nan(summary), manifest.get("data", {}).get("split", "all")
        settings = _option_list(manifest.get("settings", {}))
        parts += [
            _metrics(with_sure_intervals(summary, patients_of(summary))),
            f"Sampling: {settings}.",
            _calibration(summary, config, manifest.get("settings", {})),
            _limits(summary, split, None),
        ]
        parts.append(_definitions(summary))
    else:
        parts.append(f"## Limits\n\n{NO_DEVICE}\n- Nothing was measured for this card.")
    parts.append(_citation(config))
    return "\n\n".join(part for part in parts if part) + "\n"


def _usage(config):
    own = ', data_name="path/to/my_loader.py:MyDataset"' if ".py:" in config["data"]["data_name"] else ""
    lines = [
        "## Use",
        "",
        "```python",
        "from guided_diffusion import Segmenter",
        "",
        f'segmenter = Segmenter.load("hf://OWNER/NAME"{own})  # or the path of this folder',
        "mask, probability, uncertainty = segmenter(image)",
        "```",
    ]
    if own:
        lines += [
            "",
            "Its loader is a file of its authors, which this folder does not hold and which you name yourself.",
        ]
    return "\n".join(lines)


def _exported_facts(checkpoint, weights, names, graphs):
    config = checkpoint.config
    averaged = "of the last step" if weights == "model" else f"averaged at the rate {markdown_text(weights)}"
    side = config["model"]["image_size"]
    lines = ["## Model", "", f"- Classes: {_class_names(names)}."]
    lines.append(f"- Input: {counted(checkpoint.image_channels, 'channel')}, resized to {side} x {side} pixels.")
    lines.append(f"- Weights: {averaged}, after {counted(checkpoint.step, 'step')}.")
    lines.append(f"- Loader of its data: {markdown_code(place_name(config['data']['data_name']))}.")
    lines += [f"- {group.capitalize()}: {_option_list(config[group])}." for group in ("model", "diffusion", "train")]
    lines += [
        f"- `{name}.pt2`, `{name}.onnx`: {', '.join(graph['inputs'])} -> {', '.join(graph['outputs'])}."
        for name, graph in dict(graphs).items()
        if name in ("condition", "denoise")
    ]
    return "\n".join(lines)


def _with_nan(value):
    """A value of summary.json with NaN for the undefined figures, which JSON writes as null; "groups" may be None."""
    if isinstance(value, dict):
        return {name: item if name == "groups" else _with_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
