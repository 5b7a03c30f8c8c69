"""The documents keep their word: links lead somewhere, line numbers are those of the names, diagrams are as drawn.

After code has moved, `python tests/test_docs.py` brings the line numbers of the documents' links up to date.
"""

import ast
import dataclasses
import re
import runpy
from pathlib import Path

import pytest
import torch

from guided_diffusion.config import options as config
from guided_diffusion.config import script_options as run_options
from guided_diffusion.config import script_options as train_options
from guided_diffusion.config.command_line import parse
from guided_diffusion.models.medsegdiff import build_model

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAPER_TO_CODE = ROOT / "docs" / "paper_to_code.md"
# [`name`](file.py#L12): a class, function, method, dataclass field or constant and the line that defines it.
NAME_LINK = re.compile(r"\[`([\w.]+)`\]\(([^()#\s]+\.py)(?:#L\d+)?\)")

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def definitions(path):
    """The line of every name that a Python file defines: {"Class.method": 12}."""

    def walk(body, prefix):
        for node in body:
            names = []
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                names = [node.name]
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                lines.setdefault(prefix + name, node.lineno)
            if isinstance(node, ast.ClassDef):
                walk(node.body, f"{prefix}{node.name}.")

    lines = {}
    walk(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return lines


def up_to_date(document):
    """The document's text with the right line number in every link to a name; names not found are told."""
    missing = []

    def right(match):
        name, target = match.groups()
        path = document.parent / target
        lines = definitions(path) if path.is_file() else {}
        if name not in lines:
            missing.append(f"{document.name}: {target} has no {name}")
            return match.group()
        return f"[`{name}`]({target}#L{lines[name]})"

    text = NAME_LINK.sub(right, document.read_text(encoding="utf-8"))
    assert not missing, "\n".join(missing)
    return text


@documents
def test_links_to_names_point_at_their_lines(document):
    assert document.read_text(encoding="utf-8") == up_to_date(document), "run: python tests/test_docs.py"


@documents
def test_links_lead_to_files_and_headings(document):
    text = document.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)", prose)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, heading = target.partition("#")
        if path.startswith("https:"):
            continue
        assert (document.parent / path).exists(), target
        assert path or heading in headings, target


def test_a_moved_name_is_found_again_and_a_lost_one_is_told(tmp_path):
    (tmp_path / "code.py").write_text("import os\n\n\nclass A:\n    size: int = 1\n\n    def run(self): ...\n")
    document = tmp_path / "text.md"
    document.write_text("[`A`](code.py), [`A.run`](code.py#L2), [`A.size`](code.py#L5) and [code](code.py)")
    assert up_to_date(document) == (
        "[`A`](code.py#L4), [`A.run`](code.py#L7), [`A.size`](code.py#L5) and [code](code.py)"
    )
    document.write_text("[`A`](code.py#L4) and [`B`](code.py#L9)")
    with pytest.raises(AssertionError, match="code.py has no B"):
        up_to_date(document)


@pytest.mark.parametrize("module", ["medsegdiff", "condition", "spectrum"])
def test_paper_to_code_names_every_part_of_the_models(module):
    text = PAPER_TO_CODE.read_text(encoding="utf-8")
    tree = ast.parse((ROOT / "guided_diffusion" / f"{module}.py").read_text(encoding="utf-8"))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}
    assert classes <= {name.split(".")[0] for name, _ in NAME_LINK.findall(text)}


def test_paper_to_code_names_only_flags_that_exist():
    groups = (config.ModelOptions, config.DiffusionOptions, train_options.TrainOptions, run_options.SampleOptions)
    known = {field.name for group in groups for field in dataclasses.fields(group)}
    named = set(re.findall(r"--(\w+)", PAPER_TO_CODE.read_text(encoding="utf-8")))
    assert named and named <= known


def test_the_table_of_presets_is_true():
    rows = re.findall(r"(?m)^\| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"))
    start = rows.index("| S | B | L | ++")
    table = [row.split(" | ") for row in rows[start + 1 :] if row.count(" | ") == len(config.PRESETS)]
    for column, name in enumerate(config.PRESETS, start=1):
        said = {row[0]: row[column] for row in table}
        for flag, value in config.PRESETS[name].items():
            assert said[f"`--{flag}`"] == str(value)
        for flags, row in (
            ("--version v1", "parameters of v1"),
            ("", "of v2, by the default recipe"),
            ("--recipe none", "of v2, `--recipe none` or `published`"),
            ("--version unet", "of unet"),
        ):
            (model_options, *_), _ = parse(
                "",
                [config.ModelOptions, train_options.TrainOptions, config.DiffusionOptions],
                f"--preset {name} {flags}".split(),
            )
            with torch.device("meta"):
                model = build_model(model_options, 4, 1)
            count = sum(parameter.numel() for parameter in model.parameters())
            assert said[row] == (f"{count / 1e9:.1f} G" if count > 1e9 else f"{count / 1e6:.1f} M")


def test_diagrams_are_as_the_script_draws_them():
    drawn = runpy.run_path(str(ROOT / "docs" / "draw_diagrams.py"))["DIAGRAMS"]
    for name, draw in drawn.items():
        assert (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8") == draw().svg()


if __name__ == "__main__":
    for path in DOCUMENTS:
        path.write_text(up_to_date(path), encoding="utf-8")
