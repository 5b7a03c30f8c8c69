"""The options of the demo."""

from dataclasses import dataclass

from .fields import option
from .options import MAX_SEED, SEED_REASON


@dataclass
class DemoOptions:
    """The demo."""

    out_dir: str = option(
        "./demo/",
        "folder for the phantoms, checkpoints and results: new, empty, or an earlier demo to continue",
        path=True,
    )
    data: str = option("both", "which phantoms to run", choices=("ISIC", "BRATS", "both"))
    speed: float = option(
        1.0,
        "multiplies the training steps and their time limit; 0.1 gives a quick, poor run",
        above=0,
        maximum=1000,
        why="the demo then takes four days",
    )
    seed: int = option(
        0, "seed of the phantoms, the training and the sampling", minimum=0, maximum=MAX_SEED, why=SEED_REASON
    )
