"""Numbers as pixels: what a pixel can hold, and how a computed number becomes one.

Rules of all tasks that compute real numbers:

* they compute in float32 if the pixels that come in and the result have at most 16 bits, or are
  float32; in float64 otherwise;
* without a `dtype` they give what they compute in;
* integers are rounded to the nearest one, halves to the even one, and those too small or too large
  become the smallest or largest the type holds; NaN becomes the largest, which is what files show
  for "no value".
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BeforeValidator, WithJsonSchema

from lima2py.errors import BadParameter
from lima2py.frame import Array
from lima2py.onepass import Operation
from lima2py.task import InputFile


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def _number(value: object) -> object:
    if _is_number(value):
        return value
    raise ValueError("should be a number")


def _number_or_fill(value: object) -> object:
    if _is_number(value) or value == "fill":
        return value
    raise ValueError("should be a number, or fill")


def _image_or_number(value: object) -> object:
    if _is_number(value) or (isinstance(value, str) and value.strip() and "\0" not in value):
        return value
    raise ValueError("should be the path of an image, or a number")


_NUMBER = {"type": "number"}
Number = Annotated[int | float, BeforeValidator(_number), WithJsonSchema(_NUMBER)]
"""A finite number; whole numbers keep all their digits."""
PixelValue = Annotated[
    int | float | Literal["fill"],
    BeforeValidator(_number_or_fill),
    WithJsonSchema({"anyOf": [_NUMBER, {"enum": ["fill"]}]}),
]
"""What a pixel is set to; `fill` is what files show for "no value": see `as_pixel`."""
ImageOrNumber = Annotated[InputFile | float, BeforeValidator(_image_or_number)]
"""An image in a file, or one number for all pixels."""
ResultType = Literal[
    "float32", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32"
]  # fmt: skip
"""The types a computed pixel can be given."""


def as_pixel(value: float | Literal["fill"], dtype: np.dtype[Any], field_name: str) -> np.generic:
    """A value as one pixel.

    Args:
        value: a number, or `fill`: the largest number of an integer type, NaN of a float.
        dtype: of the pixel.
        field_name: the parameter it came from, for the complaint.

    Raises:
        BadParameter: if pixels of this type cannot hold it.
    """
    pixel: np.generic
    if dtype.kind in "biu":
        low, high = _ends(dtype)
        number = high if value == "fill" else value
        if value == "fill" and dtype.kind == "b":
            raise BadParameter(f"{field_name}: pixels of bool have no value left for fill")
        if number != int(number) or not low <= number <= high:
            raise BadParameter(
                f"{field_name}: {value} does not fit pixels of {dtype}, which hold whole numbers"
                f" from {low} to {high}"
            )
        pixel = dtype.type(int(number))
    elif dtype.kind != "f":
        raise BadParameter(f"{field_name}: pixels of {dtype} hold no numbers that could be set")
    elif value == "fill":
        pixel = dtype.type(math.nan)
    elif abs(value) > (most := _ends(dtype)[1]):
        raise BadParameter(
            f"{field_name}: {value} does not fit pixels of {dtype}, which go up to {most:g}"
        )
    else:
        pixel = dtype.type(value)
    return pixel


def limit_of(above: float, dtype: np.dtype[Any], field_name: str) -> np.generic:
    """The pixel that others must be above, to be above a limit.

    Raises:
        BadParameter: if the limit lies outside of what pixels of this type hold.
    """
    low, high = _ends(dtype)
    if not low <= above <= high:
        raise BadParameter(
            f"{field_name}: {above} is outside of what pixels of {dtype} hold, {low} to {high}"
        )
    return highest_up_to(above, dtype)


def highest_up_to(limit: float, dtype: np.dtype[Any]) -> np.generic:
    """The largest pixel that is not above a limit; the smallest there is if all are.

    A pixel is above it exactly if it is above the limit, which the type may be unable to hold.
    """
    if dtype.kind in "biu":
        low, high = _ends(dtype)
        whole: np.generic = dtype.type(min(max(math.floor(limit), low), high))
        return whole
    return _float_beside(limit, dtype, -math.inf)


def lowest_from(limit: float, dtype: np.dtype[Any]) -> np.generic:
    """The smallest pixel that is not below a limit; the largest there is if all are."""
    if dtype.kind in "biu":
        low, high = _ends(dtype)
        whole: np.generic = dtype.type(min(max(math.ceil(limit), low), high))
        return whole
    return _float_beside(limit, dtype, math.inf)


def _ends(dtype: np.dtype[Any]) -> tuple[int, int] | tuple[float, float]:
    """The smallest and the largest finite number of a type, to be compared with any other."""
    if dtype.kind == "b":
        return 0, 1
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    return float(np.finfo(dtype).min), float(np.finfo(dtype).max)


def _float_beside(limit: float, dtype: np.dtype[Any], side: float) -> np.generic:
    """A limit as a float of this type; if it has none, the next one on a side."""
    with np.errstate(over="ignore"):  # the next one may be infinity
        pixel: np.generic = dtype.type(limit)
        beside: np.generic = np.nextafter(pixel, dtype.type(side))
    beyond = pixel.item() < limit if side > 0 else pixel.item() > limit
    return beside if beyond else pixel


class Arithmetic(NamedTuple):
    """In which types a task computes.

    Attributes:
        real: what it computes in: float32 or float64.
        result: what the computed pixels become.
    """

    real: np.dtype[Any]
    result: np.dtype[Any]

    @classmethod
    def of(cls, pixels: np.dtype[Any], result: ResultType | None) -> Self:
        """By the rules at the top of this module, from the pixels that come in."""
        types = [pixels] if result is None else [pixels, np.dtype(result)]
        narrow = all(item.itemsize <= 2 or item == np.float32 for item in types)
        real = np.dtype(np.float32 if narrow else np.float64)
        return cls(real, real if result is None else np.dtype(result))

    def operation(self, expression: str, numbers: Mapping[str, Array | float]) -> Operation:
        """What is done to a pixel.

        Args:
            expression: in which `real(...)` makes a number of a pixel.
            numbers: what other names in it stand for: an image of type `real`, or one number each.
        """
        real = self.real.type
        images: dict[str, Array] = {}
        values: dict[str, np.generic] = {}
        with np.errstate(over="ignore"):  # infinity speaks for itself
            for name, number in numbers.items():
                if isinstance(number, np.ndarray):
                    images[name] = number
                else:
                    values[name] = real(number)
        if self.result.kind in "iu":
            info = np.iinfo(self.result)
            # A number so large that there is nothing between whole numbers: adding it rounds.
            shift = 1.5 * 2.0 ** np.finfo(real).nmant
            values |= {"least": real(info.min), "most": real(info.max), "shift": real(shift)}
            expression = (  # NaN is not <= most
                f"((least if ({expression}) < least else ({expression}) if ({expression}) <= most"
                " else most) + shift) - shift"
            )
        return Operation(expression.replace("real(", f"{self.real}("), self.result, images, values)
