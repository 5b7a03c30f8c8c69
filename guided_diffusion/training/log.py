"""The log of a training run: log.jsonl, TensorBoard and perhaps a service."""

import json
import math
import threading
from pathlib import Path

from ..io.files import atomic_path, naming
from ..report.training_page import read_log
from ..runtime.console import console, counted


class RunLog:
    """Scalars of a training run: `log.jsonl` in `out_dir`, and TensorBoard event files in a folder beside it.

    A resumed run appends. Rows after `start_step`, which an interrupted run logged after its last checkpoint, are
    dropped first, so the curve has each step once. Raises OSError if a file cannot be written.
    tracker: a `trackers.Tracker` that gets the scalars too, or None.
    """

    def __init__(self, out_dir, start_step=0, tracker=None):
        from torch.utils.tensorboard import SummaryWriter

        self.out_dir, self.tracker = Path(out_dir), tracker
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self._keep_rows(self._rows_until(start_step))
        self.jsonl = open(self.out_dir / "log.jsonl", "a", encoding="utf-8")
        self.previous_hook, threading.excepthook = threading.excepthook, _thread_error
        try:
            with naming(self.out_dir / "tensorboard"):
                self.tensorboard = SummaryWriter(self.out_dir / "tensorboard", purge_step=start_step + 1)
        except BaseException:
            self.jsonl.close()
            threading.excepthook = self.previous_hook
            raise

    def _keep_rows(self, rows):
        with atomic_path(self.out_dir / "log.jsonl") as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def _rows_until(self, step):
        rows, left_out = read_log(self.out_dir) if step else ([], 0)
        if left_out:
            lines = counted(left_out, "line")
            console().warning(f"warning: {self.out_dir / 'log.jsonl'}: {lines} with no step or no numbers, left out")
        return [row for row in rows if row["step"] <= step]

    def write(self, step, values):
        """Log one step's values, {name: float}."""
        # JSON has no NaN and infinities; a gradient in fp16 may be infinite.
        row = {"step": step, **{name: value if math.isfinite(value) else None for name, value in values.items()}}
        with naming(self.out_dir / "log.jsonl"):
            self.jsonl.write(json.dumps(row) + "\n")
            self.jsonl.flush()
        with naming(self.out_dir / "tensorboard"):
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)
            self.tensorboard.flush()
        if self.tracker is not None:
            self.tracker.write(step, values)

    def picture(self, name, step, picture):
        """Log a picture, RGB uint8 [H, W, 3], to TensorBoard."""
        with naming(self.out_dir / "tensorboard"):
            self.tensorboard.add_image(name, picture, step, dataformats="HWC")
            self.tensorboard.flush()

    def close(self):
        """Flush and close all files."""
        if self.tracker is not None:
            self.tracker.close()
        try:
            with naming(self.out_dir / "log.jsonl"):
                self.jsonl.close()
        finally:
            try:
                with naming(self.out_dir / "tensorboard"):
                    self.tensorboard.close()
            finally:
                threading.excepthook = self.previous_hook


def _thread_error(arguments):
    # TensorBoard writes in a thread. If that fails (a full disk), our next flush raises the error.
    if not issubclass(arguments.exc_type, OSError):
        threading.__excepthook__(arguments)
