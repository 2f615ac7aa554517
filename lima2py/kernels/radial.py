"""The smooth background of a diffraction image as a function of the radius, and what exceeds it."""

import math

import numpy as np

from lima2py.kernels.compiled import njit

FAST = {"reassoc", "contract", "nsz"}


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def _weighted(x, w, n, poisson):  # type: ignore[no-untyped-def]
    """Weighted mean and standard deviation of the first `n` values `x` with weights `w`."""
    values, weights = x[:n], w[:n]
    total = squares = signal = 0.0
    for j in range(n):
        total += weights[j]
        squares += weights[j] * weights[j]
        signal += values[j] * weights[j]
    mean = signal / total
    variance = 0.0
    if poisson:
        for j in range(n):
            variance += max(values[j] * weights[j], 1.0)
    else:
        for j in range(n):
            distance = (values[j] - mean) * weights[j]
            variance += distance * distance
    return mean, math.sqrt(variance / squares)


@njit(nogil=True, cache=True, error_model="numpy")
def sigma_clip(  # type: ignore[no-untyped-def]
    image, pixels, first, weights, low, high, cutoff, cycles, poisson, avg, std, count
):
    """Mean and deviation of every bin, without the pixels that lie too far from the mean.

    Args:
        image: one frame, flattened.
        pixels: uint32, the pixels of the bins, bin after bin.
        first: int64 `(bins + 1)`, where the pixels of a bin begin.
        weights: float32, by which every one of `pixels` is divided.
        low: pixels from `low` to `high` have no valid value; nor have those that are not finite.
        high: see `low`.
        cutoff: how many standard deviations from the mean a pixel may lie; in bins of many pixels
            it is as many as Chauvenet's criterion allows, if that is more.
        cycles: how often pixels are taken out.
        poisson: whether the variance of a pixel is its value, 1 at least.
        avg: float64 `(bins)`, written to; NaN where no pixel is left.
        std: the same.
        count: the same, the number of pixels that are left.
    """
    bins = len(first) - 1
    most = 0
    for b in range(bins):
        most = max(most, first[b + 1] - first[b])
    x = np.empty(most)
    w = np.empty(most)
    for b in range(bins):
        own = pixels[first[b] : first[b + 1]]
        own_weights = weights[first[b] : first[b + 1]]
        n = 0
        for j in range(len(own)):
            v = np.float64(image[own[j]])
            x[n] = v / own_weights[j]
            w[n] = own_weights[j]
            n += (not (low <= v <= high)) & (v - v == 0.0)
        avg[b] = std[b] = np.nan
        for cycle in range(cycles + 1):
            if n == 0:
                avg[b] = std[b] = np.nan
                break
            avg[b], std[b] = _weighted(x, w, n, poisson)
            if cycle == cycles:
                break
            chauvenet = math.sqrt(2.0 * math.log(max(n, 3) / math.sqrt(2.0 * math.pi)))
            limit = max(cutoff, chauvenet) * std[b]
            mean = avg[b]
            kept = 0
            for j in range(n):
                value = x[j]
                x[kept] = value
                w[kept] = w[j]
                kept += abs(value - mean) <= limit
            if kept == n:
                break
            n = kept
        count[b] = n


@njit(nogil=True, cache=True, error_model="numpy")
def intense(  # type: ignore[no-untyped-def]
    image, radius, weights, radial, avg, std, cutoff, noise, low, high, index, value, background
):
    """Pixels above the background at their radius.

    Args:
        image: one frame, flattened.
        radius: float32, of every pixel; NaN where it is masked.
        weights: float32, by which every pixel is divided to compare it.
        radial: float64 `(bins)`, the centres of the bins, at equal distances.
        avg: float64 `(bins)`, the background; NaN where it is not known.
        std: float64 `(bins)`, its standard deviation.
        cutoff: how many standard deviations a pixel must exceed the background.
        noise: added to the standard deviation, in quadrature; also the least excess.
        low: pixels from `low` to `high` have no valid value; nor have those that are not finite.
        high: see `low`.
        index: uint32, written to: the pixels found.
        value: of the type of the image, written to: their values.
        background: float32, written to: the background under them, times their weight.

    Returns:
        How many were found; the arrays hold the first of them, as many as they have room for.
    """
    bins = len(radial)
    room = len(index)
    step = (radial[bins - 1] - radial[0]) / (bins - 1)
    least = np.empty(
        bins + 1
    )  # what no pixel below can be intense at, from each centre to the next
    for b in range(bins):
        o = min(b + 1, bins - 1)
        mean, deviation = min(avg[b], avg[o]), min(std[b], std[o])
        height = max(noise, cutoff * math.sqrt(deviation * deviation + noise * noise))
        least[b] = mean + height - 1e-9 * (abs(mean) + height)
        if avg[b] != avg[b] or avg[o] != avg[o]:
            least[b] = -np.inf
    least[bins] = np.inf
    found = 0
    candidate = np.empty(1024, np.uint32)
    for tile in range(0, len(image), 1024):
        part = image[tile : tile + 1024]
        radii = radius[tile : tile + 1024]
        weight = weights[tile : tile + 1024]
        n = 0
        for j in range(len(part)):
            at = (np.float64(radii[j]) - radial[0]) / step
            known = (at >= -0.5) & (at <= bins - 0.5)  # not if it is NaN
            below = np.uint64(max(at, 0.0)) if known else np.uint64(bins)
            candidate[n] = j
            n += part[j] > least[below] * weight[j]
        for k in range(n):
            j = candidate[k]
            v = np.float64(part[j])
            if (low <= v <= high) or v - v != 0.0:
                continue
            at = min(max((np.float64(radii[j]) - radial[0]) / step, 0.0), bins - 1.0)
            b = int(at)
            o = min(b + 1, bins - 1)
            share = at - b
            mean = avg[b] * (1.0 - share) + avg[o] * share
            deviation = std[b] * (1.0 - share) + std[o] * share
            if mean != mean:  # one of them is not known: that of the nearer bin
                near = o if share >= 0.5 else b
                mean, deviation = avg[near], std[near]
            height = max(noise, cutoff * math.sqrt(deviation * deviation + noise * noise))
            if v / weight[j] - mean > height:
                if found < room:
                    index[found] = tile + j
                    value[found] = part[j]
                    background[found] = mean * weight[j]
                found += 1
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def group(index, excess, width, fewest, x, y, intensity, nb_pixels):  # type: ignore[no-untyped-def]
    """Put pixels together that touch each other, by an edge or a corner.

    Args:
        index: uint32, the pixels of an image, ascending.
        excess: float64, what each of them holds.
        width: of the image.
        fewest: pixels that a group must have.
        x: float64, as long as `index`, written to: the centres of the groups, weighted by what
            their pixels hold, if that is more than 0.
        y: the same.
        intensity: float64, written to: what their pixels hold together.
        nb_pixels: uint32, written to: how many pixels they have.

    Returns:
        How many groups there are; -1 if the pixels are not ascending.
    """
    n = len(index)
    parent = np.empty(n, np.int64)
    above = 0
    for k in range(n):
        here = np.int64(index[k])
        column = here % width
        parent[k] = k
        if k > 0 and index[k] <= index[k - 1]:
            return -1
        if k > 0 and column > 0 and index[k - 1] == here - 1:
            parent[k] = parent[k - 1]
        while index[above] < here - width - 1:
            above += 1
        j = above
        while j < k and index[j] <= here - width + 1:
            line, there = divmod(np.int64(index[j]), width)
            if line == here // width - 1 and abs(there - column) <= 1:
                one, other = k, j
                while parent[one] != one:
                    one = parent[one]
                while parent[other] != other:
                    other = parent[other]
                parent[max(one, other)] = min(one, other)
            j += 1
    sums = np.zeros((n, 6))  # weighted x and y, weights, plain x and y, all that it holds
    for k in range(n):
        root = k
        while parent[root] != root:
            root = parent[root]
        parent[k] = root
        column = np.int64(index[k]) % width + 0.5
        row = np.int64(index[k]) // width + 0.5
        weight = max(excess[k], 0.0)
        own = sums[root]
        own[0] += weight * column
        own[1] += weight * row
        own[2] += weight
        own[3] += column
        own[4] += row
        own[5] += excess[k]
    sizes = np.zeros(n, np.uint32)
    for k in range(n):
        sizes[parent[k]] += 1
    groups = 0
    for k in range(n):
        if parent[k] == k and sizes[k] >= fewest:
            own = sums[k]
            x[groups] = own[0] / own[2] if own[2] > 0.0 else own[3] / sizes[k]
            y[groups] = own[1] / own[2] if own[2] > 0.0 else own[4] / sizes[k]
            intensity[groups] = own[5]
            nb_pixels[groups] = sizes[k]
            groups += 1
    return groups
