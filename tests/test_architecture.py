"""The house: which wing may import which, and one name for one thing."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "guided_diffusion"
SHARED = ("config", "io", "runtime")
CHECKPOINT = ("data", "models", "diffusion", *SHARED)
MAY_IMPORT = {  # beside itself
    "runtime": (),
    "io": ("runtime",),
    "config": ("runtime", "io"),
    "diffusion": (),
    "models": ("runtime",),
    "data": SHARED,
    "checkpoint_schema": ("models", "diffusion", *SHARED),
    "exported": ("checkpoint_schema", *SHARED),
    "checkpoint": ("checkpoint_schema", "exported", *CHECKPOINT),
    "inference": ("checkpoint", *CHECKPOINT),
    "evaluation": ("inference", "checkpoint", *CHECKPOINT),
    "report": ("evaluation", "inference", "checkpoint", *CHECKPOINT),
    "training": ("report", "evaluation", "inference", "checkpoint", *CHECKPOINT),
    "cli": ("training", "report", "evaluation", "inference", "checkpoint", "exported", *CHECKPOINT),
}
DOORS = {"__init__", "unet", "gaussian_diffusion", "dpm_solver", "isicloader", "bratsloader", "files", "errors"}
DOORS |= {"__main__"}  # of `python -m`


def modules():
    """(dotted name below the package, path) of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"), path


def imported(dotted, path):
    """The dotted names below the package that a module imports, at its top or inside its functions."""
    package = dotted.split(".") if path.name == "__init__.py" else dotted.split(".")[:-1]
    if path == PACKAGE / "__init__.py":
        package = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            yield from [".".join(base)] if base else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "guided_diffusion":
            yield node.module.partition(".")[2] or node.names[0].name
        elif isinstance(node, ast.Import):
            yield from [a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "guided_diffusion"]


def test_every_module_is_in_a_wing_or_is_a_door():
    places = {dotted.split(".")[0] for dotted, _ in modules()}
    assert places - DOORS == set(MAY_IMPORT)


@pytest.mark.parametrize("wing", MAY_IMPORT)
def test_a_wing_imports_only_what_is_below_it(wing):
    allowed = {wing, *MAY_IMPORT[wing]}
    wrong = [
        f"{dotted} imports {other}"
        for dotted, path in modules()
        if dotted.split(".")[0] == wing
        for other in imported(dotted, path)
        if other.split(".")[0] not in allowed
    ]
    assert not wrong


def test_imports_are_seen_wherever_they_stand(tmp_path):
    """The two tests above would pass on anything if `imported` saw nothing."""
    path = tmp_path / "module.py"
    path.write_text(
        "from ..cli import train\ndef late():\n    import guided_diffusion.report.page\n    from . import x\n"
    )
    assert list(imported("data.module", path)) == ["cli", "report.page", "data"]


def test_a_door_holds_no_code_of_its_own():
    for name in DOORS - {"__init__", "__main__"}:
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        kinds = {type(node) for node in tree.body[1:]}
        assert kinds <= {ast.ImportFrom, ast.Assign}, name
        assert (PACKAGE / f"{name}.py").read_text().count("\n") <= 8


def test_no_two_modules_define_the_same_name():
    homes = defaultdict(set)
    for dotted, path in modules():
        if dotted in DOORS:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                homes[node.name].add(dotted)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in (n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)):
                    homes[name.id].add(dotted)
    twice = {name: sorted(where) for name, where in homes.items() if len(where) > 1 and name != "__all__"}
    assert not twice


# ---- the tests' own house --------------------------------------------------------------------------------------------

TESTS = Path(__file__).resolve().parent
LEAST_LINES = 40  # shorter modules need no file of tests to themselves


def test_a_module_has_its_tests_in_the_file_of_its_name():
    missing = []
    for _, path in modules():
        place = path.relative_to(PACKAGE)
        test = TESTS / place.with_name(f"test_{place.name}")
        if path.read_text(encoding="utf-8").count("\n") > LEAST_LINES and not test.is_file():
            missing.append(str(test.relative_to(TESTS)))
    assert not missing


def test_no_test_file_imports_another():
    wrong = []
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path.name} imports {name}" for name in names if name.split(".")[-1].startswith("test_")]
    assert not wrong
