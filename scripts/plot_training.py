"""Draw the curve of a training run to an SVG picture: loss, validation Dice, and where it was interrupted."""

from dataclasses import dataclass
from pathlib import Path

from guided_diffusion.command_line import parse
from guided_diffusion.config import option
from guided_diffusion.errors import UserError, run_script
from guided_diffusion.logger import console
from guided_diffusion.training_curve import write_curve

EXAMPLE = "python scripts/plot_training.py --run_dir runs/first --out runs/first/curve.svg"


@dataclass
class PlotOptions:
    """What is drawn, and where to."""

    run_dir: str = option("", "--out_dir of a training run, on this machine", required=True)
    out: str = option("", "SVG file to write; empty: curve.svg in --run_dir")


def main(argv=None):
    """Draw the curve."""
    (options,), _ = parse(__doc__, [PlotOptions], argv, example=EXAMPLE)
    if not options.run_dir:
        raise UserError("--run_dir: is needed; it names the --out_dir of a training run")
    path = Path(options.out) if options.out else Path(options.run_dir) / "curve.svg"
    write_curve(options.run_dir, path)
    console().info(f"wrote {path}")
    return 0


if __name__ == "__main__":
    run_script(main)
