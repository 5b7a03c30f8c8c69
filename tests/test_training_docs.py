"""The commands of docs/training.md."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from guided_diffusion.config.command_line import parse
from guided_diffusion.config.options import DataOptions, DiffusionOptions, ModelOptions, ProcessOptions
from guided_diffusion.config.script_options import SampleOptions, TrainOptions

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "training.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_commands_of_the_document_are_right(block):
    """bash reads them, and the scripts take their flags."""
    assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True).stderr == ""
    found = 0
    for line in block.replace("\\\n", " ").splitlines():
        script = re.search(r"segmentation_(train|sample)\.py", line)
        if script:
            own = TrainOptions if script[1] == "train" else SampleOptions
            groups = [own, DataOptions, ModelOptions, DiffusionOptions, ProcessOptions]
            parse("", groups, shlex.split(line[script.end() :]))
            found += 1
    assert found
