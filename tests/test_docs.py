"""The documents keep their word: links lead somewhere, named code and flags exist, figures are those of the record."""

import ast
import dataclasses
import json
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import guided_diffusion
from guided_diffusion.config import config_file
from guided_diffusion.config.command_line import parse
from guided_diffusion.config.export_options import ExportOptions
from guided_diffusion.config.options import DataOptions, DiffusionOptions, ModelOptions, ProcessOptions
from guided_diffusion.config.presets import PRESETS
from guided_diffusion.config.sample_options import CheckOptions, EvalOptions, SampleOptions
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.io import locks, texts
from guided_diffusion.io.pictures import MAX_MEGAPIXELS
from guided_diffusion.models import condition, fourier, medsegdiff
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.runtime.program import VERB_SCRIPTS

ROOT = Path(guided_diffusion.__file__).resolve().parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*GUIDES, *sorted((ROOT / "docs" / "record").glob("*.md"))]
PAPER_TO_CODE = ROOT / "docs" / "paper_to_code.md"
NETWORK = [ModelOptions, DiffusionOptions, ProcessOptions]
SCRIPTS = {  # what a script's flags are
    "segmentation_train": [TrainOptions, DataOptions, *NETWORK],
    "segmentation_plan": [TrainOptions, DataOptions, *NETWORK],
    "segmentation_sample": [SampleOptions, DataOptions, *NETWORK],
    "segmentation_eval": [EvalOptions],
    "check_data": [CheckOptions, DataOptions],
    "export": [ExportOptions],
}
OTHER_PROGRAMS = {  # flags in the documents that are not ours
    *("standalone", "nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "max-restarts"),  # torchrun
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal"),  # SLURM
    *("requeue", "open-mode", "dist", "index-url", "fix"),  # SLURM, pytest, pip, ruff
}
NAME_LINK = re.compile(r"\[`([\w.]+)`\]\(([^()#\s]+\.py)\)")  # [`Class.method`](module.py)

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
each_guide = pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)


def read(path):
    return path.read_text(encoding="utf-8")


def definitions(path):
    """Every name that a Python file defines: {"Class", "Class.method", "CONSTANT", "Options.field"}."""

    def walk(body, prefix):
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                names.add(prefix + node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(prefix + target.id for target in targets if isinstance(target, ast.Name))
            if isinstance(node, ast.ClassDef):
                walk(node.body, f"{prefix}{node.name}.")

    names = set()
    walk(ast.parse(read(path)).body, "")
    return names


def lost_names(document):
    """The links to names that the linked module does not define, a line each."""
    lost = []
    for name, target in NAME_LINK.findall(read(document)):
        path = document.parent / target
        if not path.is_file() or name not in definitions(path):
            lost.append(f"{document.name}: {target} has no {name}")
    return lost


def headings(document):
    """The anchors of a document's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", read(document), flags=re.MULTILINE | re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)", prose)
    }


@each_document
def test_linked_names_are_defined_in_the_linked_modules(document):
    assert not lost_names(document)


def test_a_lost_name_is_reported(tmp_path):
    (tmp_path / "code.py").write_text("class A:\n    size: int = 1\n\n    def run(self): ...\n")
    document = tmp_path / "text.md"
    document.write_text("[`A`](code.py), [`A.run`](code.py), [`A.size`](code.py), [`B`](code.py) and [`A`](gone.py)")
    assert lost_names(document) == ["text.md: code.py has no B", "text.md: gone.py has no A"]


@each_document
def test_links_lead_to_files_and_headings(document):
    prose = re.sub(r"^```.*?^```", "", read(document), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, heading = target.partition("#")
        if path.startswith("https:"):
            continue
        linked = document.parent / path if path else document
        assert linked.exists(), target
        assert not heading or heading in headings(linked), target


@each_guide
def test_no_paragraph_stands_twice(document):
    """As after a careless edit or merge."""
    paragraphs = [text for text in document.read_text().split("\n\n") if len(text) > 80]
    assert sorted(paragraphs) == sorted(set(paragraphs))


@pytest.mark.parametrize("module", [medsegdiff, condition, fourier], ids=lambda module: module.__name__)
def test_paper_to_code_names_every_part_of_the_models(module):
    tree = ast.parse(read(Path(module.__file__)))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}
    assert classes and classes <= {name.split(".")[0] for name, _ in NAME_LINK.findall(read(PAPER_TO_CODE))}


def test_the_tests_that_paper_to_code_names_exist():
    named = set(re.findall(r"`(test_\w+)`", read(PAPER_TO_CODE)))
    defined = {name for path in (ROOT / "tests").rglob("test_*.py") for name in definitions(path)}
    assert named and not named - defined


@each_guide
def test_every_flag_in_the_guides_exists(document):
    groups = {group for groups in SCRIPTS.values() for group in groups}
    known = {field.name for group in groups for field in dataclasses.fields(group)} | {"config", "help", "help_all"}
    lines = [line for line in read(document).replace("\\\n", " ").splitlines() if "scripts/benchmarks/" not in line]
    named = {name for line in lines for name in re.findall(r"(?<![\w-])--([a-z][\w-]*)", line)}
    assert not {name for name in named if name.replace("-", "_") not in known} - OTHER_PROGRAMS


@each_guide
def test_the_commands_of_the_guides_are_right(document):
    """bash reads them, and the scripts take their flags."""
    for block in re.findall(r"(?ms)^ *```bash\n(.*?)^ *```", read(document)):
        assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True).stderr == ""
        for line in block.replace("\\\n", " ").splitlines():
            script = re.search(rf"scripts/({'|'.join(SCRIPTS)})\.py(.*)", line)
            verb = re.search(rf"(?:medsegdiff|-m guided_diffusion) ({'|'.join(VERB_SCRIPTS)}) (.*)", line)
            name = script[1] if script else verb and VERB_SCRIPTS[verb[1]].removesuffix(".py")
            if name in SCRIPTS:
                parse("", SCRIPTS[name], shlex.split((script or verb)[2]))


def test_the_table_of_presets_is_true():
    rows = re.findall(r"(?m)^\| (.*) \|$", read(ROOT / "docs" / "training.md"))
    start = rows.index("| XS | S | B | L | ++")
    table = [row.split(" | ") for row in rows[start + 1 :] if row.count(" | ") == len(PRESETS)]
    for column, name in enumerate(PRESETS, start=1):
        stated = {row[0]: row[column] for row in table}
        for flag, value in PRESETS[name].items():
            assert stated[f"`--{flag}`"] == str(value)
        for flags, row in (
            ("--version v1", "parameters of v1"),
            ("", "of v2, by the default recipe"),
            ("--recipe none", "of v2, `--recipe none` or `published`"),
            ("--version unet", "of unet"),
        ):
            groups = [ModelOptions, TrainOptions, DiffusionOptions]
            (model_options, *_), _ = parse("", groups, f"--preset {name} {flags}".split())
            with torch.device("meta"):
                model = build_model(model_options, 4, 1)
            count = sum(parameter.numel() for parameter in model.parameters())
            assert stated[row] == (f"{count / 1e9:.1f} G" if count > 1e9 else f"{count / 1e6:.1f} M")


def test_the_readmes_results_are_those_of_the_record():
    lines = [json.loads(line) for line in read(ROOT / "docs" / "record" / "accuracy.jsonl").splitlines()]
    rows = re.findall(r"(?m)^\| LIDC \| `(\w+)` \| (.*) \|$", read(ROOT / "README.md"))
    assert [name for name, _ in rows] == ["unet_mean", "v2", "v2_members"]
    for name, stated in rows:
        asked = {"kind": "run", "set": "lidc4", "contender": name, "minutes": 2.0, "split": "test"}
        runs = [line for line in lines if asked.items() <= line.items()]
        assert sorted(run["seed"] for run in runs) == [0, 1, 2]
        figures = ("dice", "log_loss_per_area", "ged2_unbiased", "matched_iou")
        expected = [f"{np.mean([run['figures'][figure] for run in runs]):.3f}" for figure in figures]
        expected.append(f"{np.mean([run['seconds_per_case'] for run in runs]):.2f}")
        assert stated.split(" | ") == expected, name


def test_diagrams_are_as_the_script_draws_them():
    figures = ROOT / "docs" / "figures"
    drawn = runpy.run_path(str(figures / "draw_diagrams.py"))["DIAGRAMS"]
    for name, draw in drawn.items():
        assert read(figures / f"{name}.svg") == draw().svg()


def test_the_limits_in_the_document_on_safety_are_those_of_the_code():
    document = read(ROOT / "docs" / "safety.md")
    for text in (
        f"| a JSON or CSV file | {texts.MAX_BYTES // 2**20} MB |",
        f"| {texts.MAX_YAML_BYTES // 2**10} KB and {texts.MAX_NODES:,} values",
        f"{config_file.MAX_INCLUDES} included files",
        f"| lists within lists | {texts.MAX_DEPTH} |",
        f"| digits of a number | {texts.MAX_DIGITS} |",
        f"| a picture | {MAX_MEGAPIXELS:g} megapixels",
        f"`{locks.LOCK}`",
    ):
        assert text in document, text
    assert locks.SILENCE == 120 and "after two minutes" in document
