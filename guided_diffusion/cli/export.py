"""What `medsegdiff export` does: it writes a checkpoint's weights, config.json and model card as a folder to share."""

from dataclasses import replace
from pathlib import Path

from ..checkpoint import checkpoint_digest, checkpoint_file, load_checkpoint
from ..evaluation.summary_file import read_summary
from ..exported import CARD, exported_config, write_exported
from ..inference.graphs import FORMATS, graphs_of, write_graphs
from ..inference.manifest import read_manifest
from ..io.folders import atomic_folder
from ..io.storage import fetch_file, is_remote
from ..report.model_card import hub_card
from ..runtime.console import console
from ..runtime.errors import UserError


def run_export(options):
    """Write the folder that the `ExportOptions` name, whole or not at all. Returns the exit status, 0."""
    where = f"--model_path {options.model_path}"
    path = checkpoint_file(options.model_path, where)
    checkpoint = load_checkpoint(fetch_file(path) if is_remote(path) else path, where=where)
    results = evaluated(options, checkpoint, path)
    checkpoint = replace(checkpoint, config=exported_config(checkpoint.config))
    with atomic_folder(options.out_dir) as folder:
        graphs, differences = written_graphs(folder, options, checkpoint)
        write_exported(folder, checkpoint, options.weights, {"graphs": graphs} if graphs else {})
        card = hub_card(checkpoint, checkpoint.weights(options.weights)[0], results, graphs)
        (folder / CARD).write_text(card, encoding="utf-8")
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    for name, size in sizes.items():
        differs = f", differs from the network by {differences[name]:.1g} at most" if name in differences else ""
        console().info(f"{Path(options.out_dir) / name}: {size / 1e6:.3g} MB{differs}")
    console().info(
        f"load it with Segmenter.load({str(options.out_dir)!r}) or --model_path; share the folder as it is, or upload "
        f"it to a hub: hf upload OWNER/NAME {options.out_dir}. {CARD} has no license yet: state yours"
    )
    return 0


def evaluated(options, checkpoint, path):
    """The summary and the manifest of --pred_dir; None without it.

    Raises `UserError` for a folder without evaluation, and for results of another checkpoint or of other weights.
    """
    if not options.pred_dir:
        return None
    folder, flag = Path(options.pred_dir), f"--pred_dir {options.pred_dir}"
    if not (folder / "summary.json").is_file():
        raise UserError(f"{flag}: has no summary.json; evaluate the results first")
    manifest = read_manifest(folder)
    weights = manifest.get("settings", {}).get("weights", "ema")
    is_same = manifest.get("checkpoint_sha256") == checkpoint_digest(path)
    if not is_same or checkpoint.weights(weights)[0] != checkpoint.weights(options.weights)[0]:
        what = "other weights of this checkpoint" if is_same else "another checkpoint"
        raise UserError(f"{flag}: was sampled with {what}, so its figures are not this model's; sample with this one")
    return read_summary(folder / "summary.json"), manifest


def written_graphs(folder, options, checkpoint):
    """Write the graphs that the options ask for. Returns their descriptions for config.json, and {file name: largest
    difference from the network}."""
    formats = [kind for kind in FORMATS if getattr(options, kind)]
    if not formats:
        return {}, {}
    model, diffusion = checkpoint.build()
    checkpoint.load_weights(model, options.weights)
    model.float().eval()
    temperature = checkpoint.config.get("calibration", {}).get("temperature", 1.0)
    size = checkpoint.config["model"]["image_size"]
    graphs = graphs_of(model, diffusion, checkpoint.image_channels, size, temperature)
    differences = write_graphs(folder, graphs, formats)
    described = {graph.name: graph.described for graph in graphs} | {"temperature": temperature, "image_size": size}
    if len(graphs) > 1:
        described["alpha_bar"] = diffusion.schedule.alphas_bar.tolist()
    return described, differences
