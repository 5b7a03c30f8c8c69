"""From drawn members to the results folder: fuses batches, restacks slices and writes finished cases."""

from collections import defaultdict

import numpy as np

from ..data.cases import check_shape
from ..data.truth import on_grid, raters_of, truths_of
from ..data.volumes import image_geometry
from ..io.drawing import denoising_frames, displayed
from ..runtime.console import console
from ..runtime.errors import UserError, reason_of
from .answer import fuse_cases, stack_slices


def fuse_batch(members, batch, options, classes):
    """The `CaseMaps` of each image of a batch from its drawn `Members`, by resolved `SampleOptions`."""
    maps = {"temperature": options.temperature, "pixel_maps": options.uncertainty_maps}
    return fuse_cases(members, batch["size"], options.fuse, classes, **maps)


class ResultWriter:
    """Fuses drawn batches and writes each case or volume as soon as it is complete.

    units: the `cases.Unit`s to sample. folder: the `ResultsFolder`. options: resolved `SampleOptions`. read_raters:
    replaces `truth.raters_of`. empty: the number of empty masks so far.
    """

    def __init__(self, dataset, units, folder, options, read_raters=raters_of):
        self.dataset, self.units, self.folder, self.options = dataset, units, folder, options
        self.read_raters = read_raters
        self.unit_of = {index: unit for unit in units for index in unit.indices}
        self.slices = defaultdict(list)  # maps by unit, until it is complete
        self.empty = 0

    def write(self, indices, batch, members, trace):
        """Take the `Members` of a batch and its `sampler.Trace`. indices: the data set indices of its cases."""
        maps = fuse_batch(members, batch, self.options, self.dataset.classes)
        for n, index in enumerate(indices):
            if self.options.debug:
                self._write_debug(index, n, trace)
            unit = self.unit_of[index]
            self.slices[unit].append(maps[n])
            if len(self.slices[unit]) == len(unit.cases):
                self._write_unit(unit, self.slices.pop(unit))

    def leave_out(self, unit):
        """Drop an unreadable unit and remove its files of --debug, written with its first slices."""
        self.slices.pop(unit, None)
        if self.options.debug:
            self.folder.remove_debug(case.name for case in unit.cases)

    def _write_debug(self, index, n, trace):
        case = self.dataset.cases[index]
        picture = displayed(self.dataset.load_image(case))
        self.folder.write_debug(case.name, denoising_frames(picture, *trace.of_image(n)))

    def _write_unit(self, unit, maps):
        """Write a 2-D case, or restack and write a volume."""
        answer = stack_slices(maps) if unit.is_volume else maps[0]

        def image_of(k):
            return self.dataset.load_image(unit.cases[k])

        truth = truths_of(self.dataset, unit.cases, self.read_raters)
        if truth is not None:
            truth = np.stack([on_grid(mask, answer.mask.shape[1:]) for mask in truth])
        if unit.is_volume:
            geometry = self.dataset.load_geometry(unit.cases[0])
            check_shape(unit, geometry, answer.mask.shape[1:])
            self.folder.write_volume(unit.name, answer, geometry, image_of, truth)
        else:
            geometry = image_geometry(self.dataset, unit.cases[0])
            self.folder.write_image(unit.name, answer, image_of(0), truth, geometry)
        self.empty += not answer.mask.any()


class ReadableRaters:
    """`raters_of`, which returns None for an unreadable truth and warns once for each mask: sampling needs no truth."""

    def __init__(self):
        self.warned = set()

    def __call__(self, dataset, cases, k=0):
        try:
            return raters_of(dataset, cases, k)
        except (UserError, OSError) as error:
            if cases[0].masks not in self.warned:
                self.warned.add(cases[0].masks)
                console().warning(f"warning: {cases[0].name}: goes on without its truth: {reason_of(error)}")
            return None
