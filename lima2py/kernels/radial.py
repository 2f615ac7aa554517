"""The smooth background of a diffraction image as a function of the radius, and what exceeds it."""

import math

import numpy as np

from lima2py.kernels.compiled import njit

FAST = {"reassoc", "contract", "nsz"}
TILE = 256
"""Pixels that are looked at together for one that is intense."""


@njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)
def _weighted(v, w, n, poisson):  # type: ignore[no-untyped-def]
    """Weighted mean and standard deviation of the first `n` values `v / w` with weights `w`."""
    values, weights = v[:n], w[:n]
    total = squares = signal = 0.0
    for j in range(n):
        weight = np.float64(weights[j])
        total += weight
        squares += weight * weight
        signal += values[j]
    mean = signal / total
    variance = 0.0
    if poisson:
        for j in range(n):
            variance += max(values[j], 1.0)
    else:
        for j in range(n):
            distance = values[j] - mean * weights[j]
            variance += distance * distance
    return mean, math.sqrt(variance / squares)


@njit(nogil=True, cache=True, error_model="numpy")
def _chosen(v, w, chosen, n):  # type: ignore[no-untyped-def]
    """Keep those of the first `n` values and weights that are chosen.

    Returns:
        How many they are.
    """
    number = np.uint32(0)
    for j in range(n):
        number = np.uint32(number + np.uint32(chosen[j]))
    if number == n:  # mostly; and to find out is quicker than to move them
        return n
    kept = 0
    for j in range(n):
        value, weight = v[j], w[j]
        v[kept] = value
        w[kept] = weight
        kept += chosen[j]
    return kept


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
    v = np.empty(most)
    w = np.empty(most, np.float32)
    chosen = np.empty(most, np.bool_)
    for b in range(bins):
        own = pixels[first[b] : first[b + 1]]
        own_weights = weights[first[b] : first[b + 1]]
        n = len(own)
        for j in range(n):
            v[j] = np.float64(image[own[j]])
        for j in range(n):  # not in the loop above, which waits for memory
            w[j] = own_weights[j]
            chosen[j] = (not (low <= v[j] <= high)) & (v[j] - v[j] == 0.0)
        n = _chosen(v, w, chosen, n)
        avg[b] = std[b] = np.nan
        for cycle in range(cycles + 1):
            if n == 0:
                avg[b] = std[b] = np.nan
                break
            avg[b], std[b] = _weighted(v, w, n, poisson)
            if cycle == cycles:
                break
            chauvenet = math.sqrt(2.0 * math.log(max(n, 3) / math.sqrt(2.0 * math.pi)))
            mean, limit = avg[b], max(cutoff, chauvenet) * std[b]
            for j in range(n):
                chosen[j] = abs(v[j] - mean * w[j]) <= limit * w[j]
            kept = _chosen(v, w, chosen, n)
            if kept == n:
                break
            n = kept
        count[b] = n


@njit(nogil=True, cache=True, error_model="numpy")
def _centre_below(radius, first, step, bins):  # type: ignore[no-untyped-def]
    """The number of the bin whose centre is next below a radius; `bins` if it lies in none."""
    at = (np.float64(radius) - first) / step
    known = (at >= -0.5) & (at <= bins - 0.5)  # not if it is NaN
    return np.uint64(max(at, 0.0)) if known else np.uint64(bins)


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
    start = radial[0]
    step = (radial[bins - 1] - radial[0]) / (bins - 1)
    least = np.empty(bins + 1)  # no pixel below is intense, from each centre to the next
    for b in range(bins):
        o = min(b + 1, bins - 1)
        mean, deviation = min(avg[b], avg[o]), min(std[b], std[o])
        height = max(noise, cutoff * math.sqrt(deviation * deviation + noise * noise))
        least[b] = mean + height - 1e-9 * (abs(mean) + height)
        if avg[b] != avg[b] or avg[o] != avg[o]:
            least[b] = -np.inf
    least[bins] = np.inf
    found = 0
    for tile in range(0, len(image), TILE):
        part = image[tile : tile + TILE]
        radii = radius[tile : tile + TILE]
        weight = weights[tile : tile + TILE]
        some = np.uint32(0)
        for j in range(len(part)):  # that nothing is stored here makes it three times as fast
            below = _centre_below(radii[j], start, step, bins)
            some = np.uint32(some + np.uint32(part[j] > least[below] * weight[j]))
        if some == 0:
            continue
        for j in range(len(part)):
            v = np.float64(part[j])
            if not v > least[_centre_below(radii[j], start, step, bins)] * weight[j]:
                continue
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
def _group(index, excess, width, fewest, x, y, intensity, nb_pixels):  # type: ignore[no-untyped-def]
    """Put pixels of one frame together that touch each other: see `groups`."""
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
        left = here - width - (column > 0)
        right = here - width + (column < width - 1)
        while index[above] < left:
            above += 1
        j = above
        while j < k and index[j] <= right:
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
    found = 0
    for k in range(n):
        if parent[k] == k and sizes[k] >= fewest:
            own = sums[k]
            x[found] = own[0] / own[2] if own[2] > 0.0 else own[3] / sizes[k]
            y[found] = own[1] / own[2] if own[2] > 0.0 else own[4] / sizes[k]
            intensity[found] = own[5]
            nb_pixels[found] = sizes[k]
            found += 1
    return found


@njit(nogil=True, cache=True, error_model="numpy")
def groups(  # type: ignore[no-untyped-def]
    index, excess, offsets, present, width, fewest, x, y, intensity, nb_pixels, counts
):
    """Put pixels together that touch each other, by an edge or a corner, frame by frame.

    Args:
        index: uint32, the pixels of the images, ascending in each.
        excess: float64, what each of them holds.
        offsets: int64 `(frames + 1)`, where those of an image begin.
        present: bool `(frames)`; of the others nothing is looked at.
        width: of an image.
        fewest: pixels that a group must have.
        x: float64, as long as `index`, written to: the centres of the groups, weighted by what
            their pixels hold, if that is more than 0.
        y: the same.
        intensity: float64, written to: what their pixels hold together.
        nb_pixels: uint32, written to: how many pixels they have.
        counts: int64 `(frames)`, zeros, written to: how many groups each image has.

    Returns:
        How many groups there are; -1 if the pixels of an image are not ascending.
    """
    done = 0
    for frame in range(len(counts)):
        if not present[frame]:
            continue
        begin, end = offsets[frame], offsets[frame + 1]
        found = _group(
            index[begin:end], excess[begin:end], width, fewest,
            x[done:], y[done:], intensity[done:], nb_pixels[done:],
        )  # fmt: skip
        if found < 0:
            return -1
        counts[frame] = found
        done += found
    return done
