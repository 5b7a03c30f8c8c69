"""The commands `medsegdiff VERB` and `python -m guided_diffusion VERB`; see `cli.main`."""

import os
import sys
from pathlib import Path

# Python puts the working folder first, and a numpy.py of a stranger's data there would run instead of numpy.
if not getattr(sys.flags, "safe_path", False) and Path(sys.path[0]) == Path(os.getcwd()) != Path(__file__).parents[1]:
    del sys.path[0]

from .runtime.errors import interruptible_imports, run_script  # noqa: E402


def run():
    """`medsegdiff` in a shell, from the imports, which take seconds, to the exit status."""
    interruptible_imports()
    from .cli.main import main

    run_script(main)


if __name__ == "__main__":
    run()
