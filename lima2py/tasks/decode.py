"""`decode`: pixels of frames that come compressed, as the detector sent them."""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
from pydantic import PrivateAttr

from lima2py.codec import DamagedPayload, Encoding, decode
from lima2py.errors import BadParameter
from lima2py.frame import Absence, Block, Decoded, Fate, FrameSpec
from lima2py.task import RunContext, Task


class Decode(Task):
    """Decompress frames that come as the detector sent them.

    What comes out are images. A frame whose bytes are damaged is absent from here on, its fate is
    `corrupt`, and the detail says what is wrong with it; the others go on. What is saved before,
    by `save_raw`, has its bytes all the same.

    Understood are `bslz4` and `lz4`, as Dectris detectors send them, `bszstd`, `gzip` and `none`:
    each frame is what the HDF5 filter of that name makes of a chunk that holds one image.
    """

    takes_encoded: ClassVar[bool] = True

    _decoded: Decoded = PrivateAttr()
    _who: str = PrivateAttr()

    def prepare(self, spec: FrameSpec) -> FrameSpec:
        """The images that were compressed."""
        if spec.decoded is None:
            raise BadParameter(
                f"from: there is nothing to decode, what comes in is not compressed ({spec}); leave"
                " this task out"
            )
        self._decoded = spec.decoded
        return spec.decoded.image

    def start(self, run: RunContext) -> None:
        """Damaged frames are absent in the name this task has in the graph."""
        self._who = run.task

    def process(self, block: Block) -> Block:
        """The images of the frames that are there."""
        encoding, image = self._decoded
        images = np.empty((block.count, *image.shape), image.dtype)
        damaged: dict[int, Absence] = {}
        for offset in np.flatnonzero(block.present).tolist():
            try:
                decode(cast("Encoding", encoding), block.payload(offset), images[offset])
            except DamagedPayload as error:
                damaged[offset] = Absence(Fate.CORRUPT, self._who, str(error))
        return block.carry(image, images).refuse(damaged)
