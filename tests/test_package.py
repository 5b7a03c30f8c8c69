"""The wheel: built, installed beside nothing of the clone, and used from another folder."""

import email
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import TINY, words, write_folder

from guided_diffusion.cli.main import main
from guided_diffusion.runtime.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = """
from pathlib import Path
import guided_diffusion
from guided_diffusion.cli.main import main

for line in {lines!r}:
    assert not main(line), line
segmenter = guided_diffusion.Segmenter.load("run")
print(Path(guided_diffusion.__file__).parents[4], segmenter("data/images/case1.png").mask.shape)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what the build needs, so that the clone gets no build/."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "guided_diffusion", source / "guided_diffusion", ignore=unwanted)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    built = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next((source / "dist").glob("*.whl"))


@pytest.fixture
def installed(wheel, tmp_path):
    """The python of an environment with the wheel and the libraries of this one."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    # .pth files in folders that a .pth file adds are not read, so that an editable install of the clone is not seen.
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return python


def run(command, folder):
    """Run a command in a folder without the variables that show the clone; returns its stdout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    paths = [path for path in (ROOT / "guided_diffusion").rglob("*") if path.is_file()]
    assert found == {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}
    assert any(name.endswith(".yaml") for name in found) and any(name.endswith("page.css") for name in found)


def test_its_metadata_agrees_with_the_requirements(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    needed = metadata.get_all("Requires-Dist")
    base = {one for one in needed if "extra ==" not in one}
    cloud = {one.partition(";")[0] for one in needed if re.search(r"""extra == ['"]cloud""", one)}
    lines = (ROOT / "requirement.txt").read_text().split("\n")
    assert lines[-2:] == ["-e .", ""]
    assert {plain(one) for one in base | cloud} == {plain(one) for one in lines[:-2]}
    assert set(metadata.get_all("Provides-Extra")) == {"cloud", "encoders", "hub", "medical", "track", "onnx"}
    assert metadata["Version"] == VERSION and metadata["License-Expression"] == "MIT"
    assert "medsegdiff check" in metadata.get_payload()  # the README


def plain(requirement):
    """A requirement without blanks, its bounds in order."""
    name, bounds = re.fullmatch(r"([\w.-]+)(.*)", "".join(requirement.split())).groups()
    return name, tuple(sorted(bounds.split(",")))


def test_its_commands_work_in_another_folder(installed, tmp_path):
    """From the check of data to masks, then the first lines of Python."""
    write_folder(tmp_path / "data", 3)
    line = run([installed.with_name("medsegdiff"), "--version"], tmp_path)
    assert line.startswith(f"medsegdiff {VERSION}, torch ")
    assert run([installed, "-m", "guided_diffusion", "--version"], tmp_path) == line
    lines = [
        "check --data_dir data --num_workers 0",
        f"train --data_dir data --out_dir run {TINY} --max_steps 2",
        "sample --model_path run --data_dir data/images/case1.png --out_dir masks --num_ensemble 1 --diffusion_steps 1",
    ]
    out = run([installed, "-c", COMMANDS.format(lines=[words(line) for line in lines])], tmp_path)
    assert "--data_name FOLDER\n" in out and "trained 2 steps\n" in out
    assert out.endswith(f"\n{installed.parents[1]} (32, 40)\n")
    command = shlex.split(re.search(r"sample with: (.*)", out)[1])
    assert command[:3] == ["medsegdiff", "sample", "--model_path"]
    assert (tmp_path / "masks" / "masks" / "case1.png").is_file() and (tmp_path / "masks" / "report.html").is_file()


# ---- the Dockerfile, which is built nowhere here ---------------------------------------------------------------------


def instructions():
    """The (instruction, rest) of the Dockerfile's lines."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    return [tuple(line.split(" ", 1)) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_dockerfile_copies_files_that_exist_and_are_not_ignored():
    sources = [word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources and set(sources) == kept and all((ROOT / source).exists() for source in sources)


def test_the_dockerfile_runs_the_command_as_an_ordinary_user():
    found = dict(instructions())
    assert list(found)[0] == "FROM" and json.loads(found["ENTRYPOINT"]) == ["medsegdiff"]
    assert main(json.loads(found["CMD"])) == 0
    assert found["USER"] not in ("root", "0")
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name == "RUN")


def test_the_dockerfile_installs_extras_and_torch_as_the_package_asks():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    runs = [rest for name, rest in instructions() if name == "RUN"]
    extras = re.search(r"\"\.\[([\w,]+)\]\"", " ".join(runs))[1].split(",")
    assert all(re.search(rf"(?m)^{extra} = ", project) for extra in extras)
    for requirement in re.findall(r'"(torch\w*>=[\d.]+)"', runs[0]):
        assert f'"{requirement}"' in project
    assert '--index-url "$TORCH_INDEX"' in runs[0] and dict(instructions())["ARG"].startswith("TORCH_INDEX=https://")
