"""The control groups of a process, from files as the kernel writes them; cores and memory have tests of their own."""

import pytest

from guided_diffusion.runtime.control_groups import numbers_in, own_groups


@pytest.mark.parametrize(
    ("lines", "folders"),
    [
        ("0::/\n", ["."]),
        ("0::/a/b\n", ["a/b", "a", "."]),
        ("0::/../x\n", ["."]),
        ("5:memory:/job\n4:cpu:/\n", ["memory/job", "memory", "memory/job", "memory"]),
        ("no groups at all\n", ["."]),
    ],
)
def test_groups_and_those_around_them(tmp_path, lines, folders):
    (tmp_path / "own").write_text(lines)
    assert own_groups("memory", tmp_path, tmp_path / "own") == [tmp_path / name for name in folders]
    assert own_groups("memory", tmp_path, tmp_path / "missing") == []


def test_numbers(tmp_path):
    for name, text in {"limit": "7\n", "used": "2 3\n", "open": "max\n"}.items():
        (tmp_path / name).write_text(text)
    assert numbers_in(tmp_path, "limit", "used") == [7, 2, 3]
    assert numbers_in(tmp_path, "limit", "open") == numbers_in(tmp_path, "missing") == []
