"""The exceptions for users' mistakes, and the entry and exit of every script."""

import os
import re
import shutil
import signal
import sys
import time
import traceback

# Seconds that a process waits before it prints its error, so that the launcher sees another process end first.
RANK_WAIT = 10  # for rank 0, which most likely has the same error
PEER_GONE_WAIT = 20  # for a process that ended first and knows the cause


# Exit statuses of a process that reads images, from which the main process knows the cause.
SHARED_MEMORY_FULL, UNSENT = 28, 65


class UserError(Exception):
    """A mistake that the user can correct. The message is one line: what is wrong, where, what to do."""


class NoCasesError(UserError):
    """The loader finds nothing in a folder; it may be the wrong loader."""


class NoTruthError(NoCasesError):
    """Cases are there, but none has a mask, as in the validation part of many challenges."""


class NoSplitError(UserError):
    """A folder holds another split of a data set than the requested one."""


class PeerGone(UserError):
    """Another process of this run has ended; unless it was killed, it printed the cause."""


def interruptible_imports():
    """Prepare a command's imports, which take seconds: Ctrl-C then ends the process with one line and status 130.

    A `KeyboardInterrupt` during imports would print a traceback, or surface from a half-loaded library as another
    error. `imports_done` restores the usual handling. Where stderr is a file, progress bars print a line every 30 s;
    tqdm reads this setting when it is imported.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # under nohup it is ignored, and stays so
        signal.signal(signal.SIGINT, _exit_at_once)


def _exit_at_once(*_):
    os.write(2, b"interrupted\n")
    os._exit(130)


def imports_done():
    """End what `interruptible_imports` began: from now on Ctrl-C raises `KeyboardInterrupt`."""
    if signal.getsignal(signal.SIGINT) is _exit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run_script(main):
    """Call `main()` and exit with its status, None being 0.

    A `UserError` gives one line on stderr and exit status 2. An `OSError` or exhausted memory gives one line and
    status 1, Ctrl-C one line and status 130. Any other exception is our own bug and keeps its traceback.
    With several processes only one prints the error, see `_let_another_print`. Under torchrun its report names the
    process that raised such a bug first.
    """
    _prepare_streams()
    run = _exit_status
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        run = record(_exit_status)
    sys.exit(run(main))


def _prepare_streams():
    """Let stdout and stderr take any text: a closed one drops it, and one without the characters escapes them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _exit_status(main):
    """Call `main()`, print a user's error, and return the exit status."""
    try:
        return main() or 0
    except UserError as error:
        _let_another_print(error)
        print(f"error: {visible(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head or less, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RuntimeError, MemoryError) as error:
        lost = lost_worker_message(str(error))  # torch raises it wherever the main process is
        if lost is not None:
            _let_another_print(error)
            print(f"error: {lost}", file=sys.stderr)
            return 2
        if not is_out_of_memory(error):
            raise
        _let_another_print(error)
        print(
            "error: out of memory: train with --microbatch 1 or --use_checkpoint True, "
            "sample with a lower --sample_batch_size",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        _let_another_print(error)
        print(f"error: {visible(describe_os_error(error))}", file=sys.stderr)
        return 1


def _let_another_print(error):
    """Wait while another of several processes prints the error: the launcher then ends this one, so it appears once."""
    if isinstance(error, PeerGone):
        time.sleep(PEER_GONE_WAIT)
    elif os.environ.get("RANK", "0") != "0":
        time.sleep(RANK_WAIT)


def is_out_of_memory(error):
    """Whether memory ran out, on a GPU or in main memory. oneDNN says so by "could not create a primitive"."""
    texts = ("out of memory", "can't allocate memory", "could not create a primitive", "bad_alloc")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def lost_worker_message(text):
    """What to do about a process that reads images and has ended, one line; None for another error.

    text: the message of torch's error, which names the process's signal or exit status.
    """
    if not re.match("DataLoader worker|Pin memory thread", text):
        return None
    if f"exit code {SHARED_MEMORY_FULL}" in text or "Bus error" in text:
        size = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
        return (
            f"/dev/shm: has {size / 1e6:.3g} MB, too little for the batches of the processes that read images: give it "
            "more (docker run --shm-size 2g), or fewer --num_workers (0: none)"
        )
    if f"exit code {UNSENT}" in text:
        return (
            "an item of the loader cannot be sent between processes, since it holds more than arrays, numbers and text "
            "(an open file, a function): change its __getitem__, or use --num_workers 0"
        )
    status, killed = re.search(r"exit code (\d+)", text), re.search(r"killed by signal: (\w[\w ]*)", text)
    if status:
        return (
            f"a process that reads images ended with the exit status {status[1]}, as by sys.exit() in a loader or a "
            "library; --num_workers 0 shows where"
        )
    if killed and killed[1].strip() not in ("Killed", "Terminated"):
        return (
            f"a process that reads images crashed ({killed[1].strip()}) in a library that reads files or a loader of "
            "your own; python -X faulthandler with --num_workers 0 shows where"
        )
    how = f"was ended by the signal {killed[1].strip()}" if killed else "ended without an error"
    return (
        f"a process that reads images {how}; most likely memory ran out: give fewer --num_workers (0: none) or a lower "
        "--batch_size"
    )


def visible(text, but=""):
    """Text with its control characters, except those in `but`, written as escapes.

    Names from strangers' files then neither begin a line nor act on the terminal.
    """
    control = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
    return control.sub(lambda found: found[0] if found[0] in but else repr(found[0])[1:-1], str(text))


def in_one_line(error):
    """An exception's type and message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def innermost_place(error, modules):
    """The innermost frame of an exception's traceback in one of these modules: (file, line, function), or None.

    modules: their names.
    """
    frames = [(frame.f_code, line, frame.f_globals) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(code.co_filename, line, code.co_name) for code, line, names in frames if names.get("__name__") in modules]
    return own[-1] if own else None


def reason_of(error):
    """The message of a `UserError` or an `OSError`, one line."""
    return describe_os_error(error) if isinstance(error, OSError) else str(error)


def describe_os_error(error):
    """The message of an `OSError`: its path and the system's reason, one line."""
    where = f"{error.filename}: " if error.filename else ""
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]  # a worker's error is text, its message last
    written = re.fullmatch(r"(?:\w+: )?\[Errno \d+\] ([^:]*): (['\"])(.*)\2", last)
    if error.strerror is None and written:
        return f"{written[3]}: {written[1]}"
    return f"{where}{error.strerror or last}"
