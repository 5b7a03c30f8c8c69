"""The exceptions that stand for a user's mistake, and the doors every script enters and leaves by."""

import os
import signal
import sys
import time
import traceback

OTHERS_SPEAK = 10  # seconds in which another process has told the error and been seen to end, also on a busy machine


THE_REASON = 20  # seconds in which one that has gone has told why: it lets the others speak first


class UserError(Exception):
    """Something the user can put right: the message names the file or flag and the remedy, in one line."""


class NoCasesError(UserError):
    """A folder in which the loader finds nothing: perhaps it is the wrong loader."""


class NoSplitError(UserError):
    """A folder that holds another part of a data set than the one asked for."""


class PeerGone(UserError):
    """Another of the processes that work together has ended: it has said why, unless it was killed."""


def interruptible_imports():
    """Let Ctrl-C end the process with one line and status 130 while a script's imports run, which takes seconds.

    A `KeyboardInterrupt` would show a traceback there, or come out of a half loaded library as another error.
    `run_script` takes over from here. Also before imports, since it is read there: a log gets a line of a progress bar
    every half minute, which a terminal shows ten times a second.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, _leave)


def _leave(*_):
    os.write(2, b"interrupted\n")
    os._exit(130)


def run_script(main):
    """Call `main()` as a script's entry point and exit with its status.

    A `UserError` becomes one line on stderr and exit status 2, a full disk, an unwritable path or exhausted memory one
    line and status 1, Ctrl-C a line and status 130. Anything else is our own bug and keeps its traceback.
    Of several processes one speaks: see `_told_by_another`; torchrun's report names the first that met a bug of ours.
    """
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run = _exit_status
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        run = record(_exit_status)
    sys.exit(run(main))


def _exit_status(main):
    try:
        return main() or 0
    except UserError as error:
        _told_by_another(error)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _told_by_another(error)
        print(
            "error: out of memory: train with --microbatch 1 or --use_checkpoint True, "
            "sample with a lower --sample_batch_size",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        _told_by_another(error)
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return 1


def _told_by_another(error):
    """Wait, in one of several processes, for another's message: their launcher then ends this one, and it is told once.

    What one meets the first has most likely met too; where a peer has gone it had the reason.
    """
    if isinstance(error, PeerGone):
        time.sleep(THE_REASON)
    elif os.environ.get("RANK", "0") != "0":
        time.sleep(OTHERS_SPEAK)


def is_out_of_memory(error):
    """Whether torch ran out of memory, of a GPU's or the machine's."""
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def in_one_line(error):
    """An exception's type and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def innermost_place(error, modules):
    """Where an exception was raised: (file, line, function) of the innermost frame that is of one of these modules, by
    their names; None where none is."""
    frames = [(frame.f_code, line, frame.f_globals) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(code.co_filename, line, code.co_name) for code, line, names in frames if names.get("__name__") in modules]
    return own[-1] if own else None


def reason_of(error):
    """One line for a `UserError` or an `OSError`."""
    return describe_os_error(error) if isinstance(error, OSError) else str(error)


def describe_os_error(error):
    """One line for an `OSError`: the path it is about and the system's reason."""
    where = f"{error.filename}: " if error.filename else ""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{where}{error.strerror or lines[-1]}"  # one that a DataLoader's worker raised ends with the error itself
