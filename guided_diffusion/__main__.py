"""`python -m guided_diffusion VERB`; see `cli.main`."""

import os
import sys
from pathlib import Path

# Python puts the working folder first, and a numpy.py of a stranger's data there would run instead of numpy.
if not getattr(sys.flags, "safe_path", False) and Path(sys.path[0]) == Path(os.getcwd()) != Path(__file__).parents[1]:
    del sys.path[0]

from .cli.main import run  # noqa: E402

if __name__ == "__main__":
    run()
