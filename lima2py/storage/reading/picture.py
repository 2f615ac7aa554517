"""A picture of a file, one frame or the sum of all, with the ROIs of the run: `lima2py show`.

Counts are shown on a logarithmic scale; pixels without a number (dead, nan, or a negative count)
have a colour that is not on it. A large image is reduced by taking the brightest pixel of each
square, so that no Bragg peak is lost. A table is drawn as curves over the frame number.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lima2py.errors import BadParameter, LimaError
from lima2py.frame import Array, Block, FrameSpec
from lima2py.geometry import Roi
from lima2py.storage.failures import telling
from lima2py.storage.reading.run_file import RunFile
from lima2py.storage.reading.views import as_image, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SIDE = 1000
"""Pixels of a drawn image, at most, on its longer side."""
MAX_POINTS = 4000
"""Points of a drawn curve, about, at most."""
MAX_BANDS = 4
MAX_COLUMNS = 5
MAX_LINES = 10

_COLOURS = "inferno"
_NO_NUMBER = "#5a6b73"
_ROI = "#7df9ff"


def draw(
    path: str | Path,
    png: str | Path,
    *,
    sink: str | None = None,
    frame: int | None = None,
    total: bool = False,
) -> None:
    """Write a picture.

    Args:
        path: of a master or node file.
        png: of the picture.
        sink: which of the sinks that share the file; the first if not given.
        frame: the number of the frame to show; the first with data if not given.
        total: show the sum of all frames instead.

    Raises:
        LimaError: if matplotlib is missing.
        BadParameter: if the file has no such frame or sink, or the frame has no data: why.
        StorageError: if the file cannot be read or the picture not be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise LimaError(
            'drawing needs matplotlib, which is not installed: pip install "lima2py[show]"'
        ) from None
    with RunFile(path, sink) as file:
        figure = Figure(layout="constrained", dpi=110)
        FigureCanvasAgg(figure)
        if file.spec.kind == "table":
            _draw_table(figure, file, frame)
        elif file.spec.kind == "sparse" and not file.has_pixels:
            _draw_lengths(figure, file, frame)
        elif file.spec.kind == "vector":
            _draw_vector(figure, file, *_chosen(file, frame, total))
        else:
            _draw_images(figure, file, *_chosen(file, frame, total))
    with telling(png, "cannot be written"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a ROI's name, no letter of ours
        figure.savefig(png, format="png")


def _chosen(
    file: RunFile, index: int | None, total: bool
) -> tuple[np.ma.MaskedArray[Any, np.dtype[Any]], str]:
    """What to draw, and what to call it; masked where there is no number."""
    first = file.first()
    if total:
        return file.total(), f"sum of {file.counts['saved']} frames"
    frame = file.frame(first if index is None else index)
    if frame.data is None:
        raise BadParameter(f"frame {frame.index} of {file.path.name} has no data: {frame.absence}")
    data = frame.data if file.spec.kind == "vector" else as_image(file.spec, frame.data)
    return (
        np.ma.masked_array(data, ~is_number(data)),
        f"frame {frame.index} (of {file.index.min()} to {file.index.max()})",
    )


def _draw_images(
    figure: Figure, file: RunFile, values: np.ma.MaskedArray[Any, np.dtype[Any]], what: str
) -> None:
    height, width = file.spec.image
    bands = values.reshape(-1, height, width)[:MAX_BANDS]
    if values.dtype.kind == "i":
        bands = np.ma.masked_less(bands, 0)  # how detectors mark gaps and bad pixels
    good = np.ma.compressed(bands)
    images = [_reduced(band) for band in bands]
    tall = _tall(file.spec)
    figure.set_size_inches(*_size(height * tall, width, len(bands)))
    axes = figure.subplots(1, len(bands), squeeze=False)[0]
    norm = _scale(np.concatenate([image.ravel() for image, _ in images]))
    for number, (panel, (image, factor)) in enumerate(zip(axes, images, strict=True)):
        shown = panel.imshow(
            np.ma.masked_invalid(np.maximum(image, norm.vmin)),
            norm=norm,
            cmap=_colours(),
            interpolation="nearest",
            extent=(0, image.shape[1] * factor, image.shape[0] * factor, 0),
        )
        panel.set(xlim=(0, width), ylim=(height, 0), xlabel="x (pixel)", ylabel="y (pixel)")
        panel.set_aspect(tall)
        if len(bands) > 1:
            panel.set_title(f"band {number}", fontsize="medium")
        _draw_rois(panel, file)
    bar = figure.colorbar(shown, ax=axes, extend="max", shrink=0.9, pad=0.02)
    bar.set_label("counts" if values.dtype.kind in "iu" else "value")
    blank = 1 - len(good) / max(1, bands.size)
    dead = f", {100 * blank:.2g} % of the pixels without a number (grey)" if blank else ""
    _title(figure, file, what, _range(good) + dead)


def _draw_vector(
    figure: Figure, file: RunFile, values: np.ma.MaskedArray[Any, np.dtype[Any]], what: str
) -> None:
    figure.set_size_inches(9, 5)
    axes = figure.subplots()
    axes.plot(np.arange(len(values)), values, drawstyle="steps-mid", linewidth=1)
    axes.set(xlabel="element", ylabel="value", xlim=(-0.5, len(values) - 0.5))
    axes.grid(alpha=0.3)
    _title(figure, file, what, _range(np.ma.compressed(values)))


def _draw_table(figure: Figure, file: RunFile, index: int | None) -> None:
    indices, blocks = _saved(file)
    table = np.concatenate([block.pixels[block.present] for block in blocks])
    table = table[np.argsort(indices, kind="stable")]
    indices = np.sort(indices)
    columns = [
        name for name in table.dtype.names or () if table.dtype[name].kind in "biuf"
    ]  # fmt: skip
    shown = columns[:MAX_COLUMNS]
    figure.set_size_inches(9, 1.2 + 1.6 * len(shown))
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    labels = _labels(file.spec)
    for panel, column in zip(panels, shown, strict=True):
        lines = [
            panel.plot(*_thinned(indices, table[column][:, row]), linewidth=1)[0]
            for row in range(len(labels))
        ]
        panel.set_ylabel(column, parse_math=False)
        panel.grid(alpha=0.3)
        if index is not None:
            panel.axvline(index, color="black", linewidth=0.8, linestyle=":")
    panels[-1].set_xlabel("frame")
    legend = figure.legend(lines, labels, loc="outside right upper", fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
    more = (
        f", {len(labels)} of {file.spec.shape[0]} rows" if len(labels) < file.spec.shape[0] else ""
    )
    _title(figure, file, f"frames {indices.min()} to {indices.max()}{more}", "")


def _draw_lengths(figure: Figure, file: RunFile, index: int | None) -> None:
    """How many rows every frame has, where it is not always the same number."""
    indices, blocks = _saved(file)
    counts = np.concatenate([block.rows.counts[block.present] for block in blocks])
    order = np.argsort(indices, kind="stable")
    figure.set_size_inches(9, 5)
    axes = figure.subplots()
    axes.plot(*_thinned(indices[order], counts[order]), linewidth=1)
    axes.set(xlabel="frame", ylabel=f"rows ({', '.join(file.spec.dtype.names or ())})")
    axes.grid(alpha=0.3)
    if index is not None:
        axes.axvline(index, color="black", linewidth=0.8, linestyle=":")
    _title(figure, file, f"frames {indices.min()} to {indices.max()}", _range(counts))


def _saved(file: RunFile) -> tuple[NDArray[np.int64], list[Block]]:
    """The numbers of all frames with data, and the blocks they lie in."""
    file.first()  # there is one
    blocks = [block for block in file.blocks() if block.data is not None]
    numbers = [block.index + np.flatnonzero(block.present) for block in blocks]
    return np.concatenate(numbers), blocks


def _labels(spec: FrameSpec) -> list[str]:
    labels = list(spec.labels) or [f"row {row}" for row in range(spec.shape[0])]
    return labels[:MAX_LINES]


def _draw_rois(panel: Axes, file: RunFile) -> None:
    """The ROIs where they lie on this product, whatever was cropped, binned or turned."""
    from matplotlib.patches import Polygon
    from matplotlib.patheffects import withStroke

    if file.spec.to_detector is None:
        return
    height, width = file.spec.image
    from_detector = np.linalg.inv(np.array(file.spec.to_detector.matrix))
    for name, box in file.rois.items():
        corners = _corners(Roi(*box), from_detector)
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            continue
        dark = [withStroke(linewidth=3, foreground="black", alpha=0.7)]
        panel.add_patch(
            Polygon(corners, fill=False, edgecolor=_ROI, linewidth=1.2, path_effects=dark)
        )
        above = top > 0.06 * height
        panel.annotate(
            name.rpartition(".")[2],
            (max(left, 0), top if above else bottom),
            xytext=(0, 3 if above else -3),
            textcoords="offset points",
            va="bottom" if above else "top",
            color=_ROI,
            fontsize="small",
            path_effects=dark,
            parse_math=False,
            clip_on=True,
        )


def _corners(box: Roi, from_detector: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.array([0, 1, 1, 0]) * box.width + box.x
    y = np.array([0, 0, 1, 1]) * box.height + box.y
    corners: NDArray[np.float64] = (from_detector @ np.stack([x, y, np.ones(4)]))[:2].T
    return corners


def _reduced(
    band: np.ma.MaskedArray[Any, np.dtype[Any]],
) -> tuple[NDArray[np.float64], int]:
    """An image of at most `MAX_SIDE`, nan where there is no number, and by how much it shrank."""
    image: NDArray[np.float64] = np.ma.filled(band.astype(np.float64), np.nan)
    factor = -(-max(image.shape) // MAX_SIDE)
    if factor == 1:
        return image, 1
    height, width = (-(-length // factor) for length in image.shape)
    padded = np.full((height * factor, width * factor), np.nan)
    padded[: image.shape[0], : image.shape[1]] = image
    squares = padded.reshape(height, factor, width, factor)
    return np.fmax.reduce(np.fmax.reduce(squares, axis=3), axis=1), factor


def _scale(values: NDArray[np.float64]) -> Any:
    """The scale of colours: logarithmic, with zero at its dark end."""
    from matplotlib.colors import LogNorm, Normalize

    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return Normalize(0, 1)
    low, high = np.percentile(positive, [1, 99.99])
    return LogNorm(low / 2, max(high, low), clip=False)


def _colours() -> Any:
    import matplotlib

    return matplotlib.colormaps[_COLOURS].with_extremes(
        bad=_NO_NUMBER, under=matplotlib.colormaps[_COLOURS](0.0)
    )


def _tall(spec: FrameSpec) -> float:
    """How much higher than wide a pixel is on the detector."""
    if spec.to_detector is None:
        return 1.0
    m = spec.to_detector
    return math.hypot(m.b, m.e) / math.hypot(m.a, m.d)


def _size(height: float, width: float, panels: int) -> tuple[float, float]:
    """Inches for some images side by side, with room for titles and the bar."""
    aspect = min(4.0, max(0.25, width / height))
    side = 7.0 if panels == 1 else 5.0
    wide, high = (side, side / aspect) if aspect > 1 else (side * aspect, side)
    return max(wide, 3.0) * panels + 1.6, max(high, 2.0) + 1.1


def _thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """A curve with fewer points: of every so many the lowest and the highest."""
    step = len(x) // (MAX_POINTS // 2)
    if step < 2:
        return x, y
    many = len(x) // step * step
    parts = y[:many].astype(np.float64).reshape(-1, step)
    ends = np.stack([np.fmin.reduce(parts, axis=1), np.fmax.reduce(parts, axis=1)], axis=1)
    return np.repeat(x[:many:step], 2), ends.ravel()


def _range(values: Array) -> str:
    return f"min {values.min():g}, max {values.max():g}" if len(values) else "no number at all"


def _title(figure: Figure, file: RunFile, what: str, about: str) -> None:
    title = f"{file.path.name}\n{what}" + (f"\n{about}" if about else "")
    figure.suptitle(title, fontsize="medium", parse_math=False)
