"""The options of an export."""

from dataclasses import dataclass

from .fields import option


@dataclass(frozen=True)
class ExportOptions:
    """The export of a checkpoint."""

    model_path: str = option(
        "",
        "run's folder (best.pt, else last.pt) or checkpoint to export, also on gs:// or az://",
        required=True,
        remote=True,
        hub=True,
    )
    out_dir: str = option("", "folder to write, new or empty", required=True, path=True)
    weights: str = option("ema", "weights to export: ema (averaged), model (of the last step) or a rate of --ema_rate")
    pred_dir: str = option(
        "", "results folder, sampled with this checkpoint and evaluated, whose figures the model card gets", path=True
    )
    pt2: bool = option(
        False, "also write the condition network and one denoising step as .pt2, for torch without this program"
    )
    onnx: bool = option(False, "also write both as .onnx, for ONNX Runtime")
