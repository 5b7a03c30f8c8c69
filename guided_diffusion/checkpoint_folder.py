"""The checkpoints of a run: model<step>.pt, how many of them are kept, last.pt (the newest) and best.pt."""

from .checkpoint import checkpoint_path, load_checkpoint, names_by_step, save_checkpoint, step_of
from .errors import UserError
from .files import name_also
from .logger import console

BEST, LAST = "best.pt", "last.pt"


class CheckpointFolder:
    """Writes the checkpoints of one run to its `WorkFolder`; of several processes the first one does.

    keep: how many of the newest model<step>.pt are kept; 0: all. best.pt and last.pt are never removed.
    A blob store that fails is a warning and does not end the run: the next call pushes what it lacks.
    """

    def __init__(self, folder, keep=0):
        self.folder, self.keep = folder, keep

    def save(self, checkpoint):
        """Write OUT/model<step>.pt, whole or not at all, and let last.pt be it. Returns where it is, in words."""
        path = checkpoint_path(self.folder.path, checkpoint.step)
        save_checkpoint(checkpoint, path)
        name_also(path, self.folder.path / LAST)
        pushed = self.folder.try_push()
        if self.keep and pushed:  # nothing is given up while the store lacks something
            names = names_by_step(self.folder.names())
            older = [name for name in names if step_of(name) <= checkpoint.step]
            self.folder.try_remove(older[: -self.keep])
        return self.folder.shown(path.name) if pushed else path

    def save_best(self, checkpoint, saved):
        """Let best.pt be this checkpoint. saved: whether `save` has written it just now."""
        path = self.folder.path / BEST
        if saved:
            name_also(checkpoint_path(self.folder.path, checkpoint.step), path)
        else:
            save_checkpoint(checkpoint, path)
        self.folder.try_push()

    def has(self, step):
        """Whether the folder has this step's checkpoint: a run may go on in another folder than it began in."""
        return checkpoint_path("", step).name in self.folder.names()

    def best_so_far(self, start):
        """`Checkpoint.validation` of the folder's best.pt; {} where there is none.

        start: the checkpoint that is gone on from, or None. Where a kill came between writing it and best.pt, best.pt
        is made up for.
        """
        found, own = self._validation_of_best(start), start.validation if start else {}
        if not own or own["step"] != start.step:
            return found
        path = checkpoint_path(self.folder.path, start.step)
        if path.exists() and (found.get("cases") != own["cases"] or found["dice"] < own["dice"]):
            name_also(path, self.folder.path / BEST)
            return own
        return found

    def told_best(self, validation):
        """What is told at the end of best.pt, whose `Checkpoint.validation` this is, or "" for {}."""
        if not validation:
            return ""
        step, dice = validation["step"], validation["dice"]
        return f"; {self.folder.shown(BEST)} is of step {step}, validation Dice {dice:.3f}"

    def _validation_of_best(self, start):
        if BEST not in self.folder.names():
            return {}
        path = self.folder.path / BEST
        if not path.exists():  # it is in a store; what is gone on from knows it too
            return start.validation if start else {}
        try:
            return load_checkpoint(path).validation
        except UserError as error:
            console().warning(f"warning: {error}; the next validation makes a new one")
            return {}
