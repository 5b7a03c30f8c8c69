"""The exit of scripts: one line and a status for users' mistakes, a traceback for our own bugs."""

import io
import sys

import pytest

from guided_diffusion.runtime.errors import UserError, interruptible_imports, run_script


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("x.png: is damaged; copy it again"), 2, "error: x.png: is damaged; copy it again"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "out/model.pt"), 1, "error: out/model.pt: No space left on device"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            1,
            "error: out of memory: train with --microbatch 1",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 1, "error: out of memory"),
        (RuntimeError("could not create a primitive"), 1, "error: out of memory"),  # oneDNN's
        (MemoryError("Unable to allocate 7.28 TiB for an array"), 1, "error: out of memory"),
    ],
)
def test_a_users_mistake_is_one_line(capsys, error, status, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run_script(main)
    message = capsys.readouterr().err.strip()
    assert end.value.code == status and message.startswith(line) and "\n" not in message


def test_names_in_an_error_neither_break_the_line_nor_act_on_the_terminal(capsys):
    def main():
        raise UserError("a\nerror: b\x1b[2J\u2028.png: lacks é")

    with pytest.raises(SystemExit):
        run_script(main)
    assert capsys.readouterr().err == "error: a\\nerror: b\\x1b[2J\\u2028.png: lacks é\n"


def test_our_own_bugs_keep_their_traceback():
    def main():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_script(main)


def test_the_end_of_main_is_status_zero():
    with pytest.raises(SystemExit) as end:
        run_script(lambda: None)
    assert end.value.code == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_or_narrow_stream_ends_no_script(monkeypatch, stream):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for given in (None, narrow):
        monkeypatch.setattr(sys, stream, given)
        interruptible_imports()
        with pytest.raises(SystemExit) as end:
            run_script(lambda: print("Müller", file=getattr(sys, stream), flush=True))
        assert end.value.code == 0
    assert narrow.buffer.getvalue() == rb"M\xfcller" + b"\n"
