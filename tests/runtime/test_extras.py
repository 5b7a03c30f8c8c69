"""Optional libraries: the module, or one line with the command that installs it."""

import math
import re
import sys
from pathlib import Path

import pytest

import guided_diffusion
from guided_diffusion.io import storage
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.runtime.extras import optional

PACKAGE = Path(guided_diffusion.__file__).parent


def test_an_installed_library_is_returned():
    assert optional("math", "cloud", "this test") is math


def test_a_missing_library_gives_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "blobfile", None)
    storage.store.cache_clear()
    with pytest.raises(UserError) as error:
        storage.store()
    assert str(error.value) == (
        "gs:// and az:// paths: needs blobfile, which is not installed; pip install 'guided_diffusion[cloud]'"
    )


def test_every_extra_that_is_asked_for_exists():
    project = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.search(r"(?ms)^\[project.optional-dependencies\]\n(.*?)^\[", project)[1]
    known = set(re.findall(r"(?m)^(\w+) =", extras))
    asked = {
        found
        for path in PACKAGE.rglob("*.py")
        for found in re.findall(r'\boptional\(\s*"[\w.]+",\s*"(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert "cloud" in asked and asked <= known
