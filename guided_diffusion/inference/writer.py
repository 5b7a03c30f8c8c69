"""From drawn members to the results folder: fuses batches, restacks slices and writes finished cases."""

import errno
from dataclasses import replace

import numpy as np

from ..data.cases import check_shape
from ..data.truth import on_grid, raters_of, truths_of
from ..data.volumes import image_geometry
from ..io.drawing import denoising_frames, displayed
from ..runtime.console import console
from ..runtime.errors import UserError, reason_of
from .answer import fuse_cases
from .cleanup import cleaned

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # errors that would end every other case too


def fuse_batch(members, batch, options, plan, classes):
    """Yield the `CaseMaps` of each image of a batch from its `Members`, by resolved `SampleOptions` and the plan."""
    maps = {"temperature": options.temperature, "pixel_maps": options.uncertainty_maps}
    maps |= {"shares": plan.shares, "threshold": plan.threshold}
    one_pass = not options.num_ensemble and not plan.shares
    return fuse_cases(members, batch["size"], plan.fuse, classes, one_pass=one_pass, **maps)


class ResultWriter:
    """Fuses drawn batches and writes each case or volume as soon as it is complete.

    units: the `cases.Unit`s to sample. folder: the `ResultsFolder`. options: resolved `SampleOptions`. plan: the
    `SamplingPlan`. read_raters: replaces `truth.raters_of`. empty: the number of empty masks so far. failed: {unit: why
    it could not be written}; the other units go on. An error of the whole disk, such as a full one, is raised.
    """

    def __init__(self, dataset, units, folder, options, plan, read_raters=raters_of):
        self.dataset, self.units, self.folder, self.options, self.plan = dataset, units, folder, options, plan
        self.read_raters = read_raters
        self.unit_of = {index: unit for unit in units for index in unit.indices}
        self.volumes = {}  # the `VolumeFiles` of each volume, until it is complete
        self.clean = (lambda masks: cleaned(masks, plan.cleanup, dataset.classes)) if plan.cleanup else None
        self.empty, self.failed = 0, {}

    def write(self, indices, batch, members, trace):
        """Take the `Members` of a batch and its `sampler.Trace`. indices: the data set indices of its cases."""
        fused = fuse_batch(members, batch, self.options, self.plan, self.dataset.classes)
        for n, (index, maps) in enumerate(zip(indices, fused, strict=True)):
            unit = self.unit_of[index]
            if unit in self.failed:
                continue
            try:
                if self.options.debug:
                    self._write_debug(index, n, trace)
                if unit.is_volume:
                    self._take_slice(unit, maps)
                else:
                    self._write_image(unit, maps)
            except (UserError, OSError) as error:
                if isinstance(error, OSError) and error.errno in OF_THE_DISK:
                    raise
                self.failed[unit] = reason_of(error)
                # An error, as only the first process shows warnings and each process has its own share.
                console().error(f"warning: {unit.name}: goes on without it: {self.failed[unit]}")
                self.leave_out(unit)

    def leave_out(self, unit):
        """Drop a unit that cannot be read or written, and remove its files of --debug."""
        if unit in self.volumes:
            self.volumes.pop(unit).close()
        if self.options.debug:
            self.folder.remove_debug(case.name for case in unit.cases)

    def _write_debug(self, index, n, trace):
        case = self.dataset.cases[index]
        picture = displayed(self.dataset.load_image(case))
        self.folder.write_debug(case.name, denoising_frames(picture, *trace.of_image(n)))

    def _take_slice(self, unit, maps):
        """Take the `CaseMaps` of a volume's next slice, and write the volume after its last one."""
        if unit not in self.volumes:
            geometry, depth = self.dataset.load_geometry(unit.cases[0]), len(unit.cases)
            check_shape(unit, geometry, (*maps.mask.shape[1:], depth))
            self.volumes[unit] = self.folder.begin_volume(unit.name, geometry, depth, self.clean)
        files = self.volumes[unit]
        files.add(maps)
        if files.is_whole:
            del self.volumes[unit]
            truth = self._truth_of(unit, files.masks.shape[2:] + files.masks.shape[:1])
            self.folder.finish_volume(files, lambda k: self.dataset.load_image(unit.cases[k]), truth)
            self.empty += not files.masks.any()

    def _write_image(self, unit, maps):
        """Write the `CaseMaps` of a 2-D case."""
        case, maps = unit.cases[0], maps if self.clean is None else replace(maps, mask=self.clean(maps.mask))
        geometry, truth = image_geometry(self.dataset, case), self._truth_of(unit, maps.mask.shape[1:])
        self.folder.write_image(unit.name, maps, self.dataset.load_image(case), truth, geometry)
        self.empty += not maps.mask.any()

    def _truth_of(self, unit, shape):
        """The raters' majority in each class on a grid of this shape, bool [K, ...], or None."""
        truth = truths_of(self.dataset, unit.cases, self.read_raters)
        return None if truth is None else np.stack([on_grid(mask, shape) for mask in truth])


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
