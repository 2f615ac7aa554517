"""Images in any format that fabio opens, and what their headers say."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from types import ModuleType
from typing import Any

from lima2py_detectors.replay.recorded import (
    Facts,
    FramesFile,
    Sizes,
    Times,
    UnreadableError,
    reason,
)

from lima2py.errors import BadParameter
from lima2py.frame import Array


class ImageFile(FramesFile):
    """An image, or several, in any format fabio opens; compressed as .gz or .bz2 or not."""

    def __init__(self, path: str):
        super().__init__(path)
        self._image: Any = None  # stays open as long as it is read, if it holds several frames

    def facts(self) -> Facts:
        """See `FramesFile`."""
        fabio = _fabio(self.path)
        try:
            with fabio.open(self.path) as image:
                data = image.data
                if data.ndim != 2:
                    raise UnreadableError(f"its frames are not images but of shape {data.shape}")
                dtype = data.dtype.newbyteorder("=")
                period, pixel_size = _recording(image.header)[1:]
                return Facts((1, *data.shape), dtype, image.nframes, None, period, pixel_size)
        except UnreadableError:
            raise
        except Exception as error:  # fabio and its formats raise anything
            raise UnreadableError(reason(error)) from error

    def read(self, first: int, step: int, out: Array, times: Times, sizes: Sizes) -> None:
        """See `FramesFile`."""
        if self._image is None:
            self._image = _fabio(self.path).open(self.path)
        image = self._image
        for at in range(len(out)):
            frame = image.get_frame(first + at * step) if image.nframes > 1 else image
            found = (1, *frame.data.shape), frame.data.dtype.newbyteorder("=")
            due = out.shape[1:], out.dtype
            if found != due:
                raise UnreadableError(f"{Facts(*found, 1)} where {Facts(*due, 1)} is due")
            out[at, 0] = frame.data
            times[at] = _recording(frame.header)[0]
        if image.nframes == 1:
            self.close()

    def close(self) -> None:
        """See `FramesFile`."""
        if self._image is not None:
            self._image.close()
            self._image = None


def _fabio(path: str) -> ModuleType:
    try:
        import fabio
    except ImportError as error:
        raise BadParameter(
            f'files: {path} is opened by fabio, which is missing: pip install "lima2py[replay]"'
        ) from error
    # It has a line for every file with a private tag; what matters it raises.
    logging.getLogger("fabio").setLevel(logging.ERROR)
    module: ModuleType = fabio
    return module


def _recording(header: Any) -> tuple[float, float | None, tuple[float, float] | None]:
    """From an image's header: timestamp (nan if unknown), period and pixel size.

    Understood are the text of PILATUS and EIGER in CBF files, whose times are local ones, and
    `time_of_day` of Lima's EDF files.
    """
    text = str(header.get("_array_data.header_contents", ""))
    time = float("nan")
    if found := re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?", text):
        time = datetime.fromisoformat(found[0]).timestamp()
    elif (given := header.get("time_of_day")) is not None:
        try:
            time = float(given)
        except ValueError:
            pass
    found = re.search(r"Exposure_period\s+([\d.eE+-]+)\s*s", text)
    period = float(found[1]) if found else None
    found = re.search(r"Pixel_size\s+([\d.eE+-]+)\s*m\s*x\s*([\d.eE+-]+)\s*m", text)
    return time, period, (float(found[1]), float(found[2])) if found else None
