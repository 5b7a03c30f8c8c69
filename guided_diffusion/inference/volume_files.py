"""The files of one volume in a results folder, compressed slice by slice while the network draws the next ones."""

import numpy as np

from ..io.compression import GzipStream, compression_pool
from ..io.drawing import volume_montage
from ..io.files import atomic_path
from ..io.images import write_png
from ..io.nifti import nifti_start, write_nifti
from ..runtime.errors import UserError


class VolumeFiles:
    """Takes the `CaseMaps` of a volume's slices in their order; `write` then writes all files of the volume.

    Only the masks are kept as an array; every other map is kept as its file's compressed bytes. Where the file has its
    slices in another order than the volume, each map is kept as an array too.

    folder: the `ResultsFolder`. name: the volume's. geometry: its `data.Geometry`. depth: its number of slices. clean:
    makes the masks that are written of the whole volume's, bool [K, X, Y, Z]; None: they stay as they are.
    """

    def __init__(self, folder, name, geometry, depth, clean=None):
        self.folder, self.name, self.geometry, self.depth, self.clean = folder, name, geometry, depth, clean
        turn = geometry.in_file[1]
        self.is_in_order = len(geometry.shape) != 2 and turn[2, 0] == 2 and turn[2, 1] > 0
        self.masks, self.count, self.members = None, 0, 0  # bool [Z, K, X, Y]; the slices and the members so far
        self._files = {}  # by path: a `GzipStream`, or the list of slices [X, Y]
        self._pool = compression_pool()

    @property
    def is_whole(self):
        """Whether all slices are there."""
        return self.count == self.depth

    def add(self, maps):
        """Take the `CaseMaps` of the next slice. Raises `UserError` for a slice of another size."""
        folder, shape = self.folder, maps.mask.shape
        if self.masks is None:
            self.masks = np.empty((self.depth, *shape), bool)
        if shape != self.masks.shape[1:]:
            sizes = ["x".join(map(str, size[1:])) for size in (shape, self.masks.shape[1:])]
            raise UserError(
                f"{self.name}: its slice {self.count} has {sizes[0]} pixels, the first {sizes[1]}; they must agree"
            )
        self.masks[self.count] = maps.mask
        soft = {"probability": maps.probability, "uncertainty": maps.uncertainty, **maps.pixel_maps}
        if folder.save_samples:
            self.members = len(maps.members)
            for e, member in enumerate(maps.members):
                self._add(folder.member_path(self.name, True, e), folder.classes.labels_of(member))
            soft |= {} if maps.coarse is None else {"coarse": maps.coarse}
        for what, values in soft.items():
            for path, value in zip(folder.soft_paths(self.name, True, what), values, strict=True):
                self._add(path, value.astype(np.float32, copy=False))
        if self.clean is None:
            self._add_mask(maps.mask)
        self.count += 1

    def _add_mask(self, masks):
        self._add(self.folder.mask_path(self.name, True), self.folder.classes.labels_of(masks))

    def _add(self, path, values):
        """Add a slice [X, Y] to a file."""
        if not self.is_in_order:
            self._files.setdefault(path, []).append(values)
            return
        plane, affine = self.geometry.as_in_file(values[..., None])
        if path not in self._files:
            self._files[path] = GzipStream(self._pool)
            shape = (*plane.shape[:2], self.depth)
            self._files[path].add(nifti_start(shape, values.dtype, affine, self.geometry.placement))
        self._files[path].add(plane.tobytes(order="F"))

    def write(self, image_of, truth=None):
        """Write all files, the mask last. image_of(k): raw slice k [C, X, Y]. truth: bool [K, X, Y, Z] or None."""
        if self.clean is not None:
            self.masks = self.clean(self.masks.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
            for masks in self.masks:
                self._add_mask(masks)
        last = self.folder.mask_path(self.name, True)
        for path in [path for path in self._files if path != last]:
            self._write(path)
        masks = self.masks.transpose(1, 2, 3, 0)
        overlay = self.folder.out_dir / "overlay" / f"{self.name}.png"
        write_png(overlay, volume_montage(image_of, masks, self.geometry.affine, truth))
        self._write(last)
        self.close()

    def _write(self, path):
        content = self._files.pop(path)
        if isinstance(content, GzipStream):
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                content.write_to(file)
        else:
            write_nifti(path, *self.geometry.as_in_file(np.stack(content, axis=-1)), self.geometry.placement)

    def close(self):
        """End the threads, and forget what was not written."""
        self._files.clear()
        self._pool.shutdown(cancel_futures=True)
