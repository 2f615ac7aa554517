"""Messages survive the wire, and nothing else gets through."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lima2py.errors import ProtocolError
from lima2py.frame import SIZES, Absence, Array, Block, Fate, FrameSpec
from lima2py.transport import packing, wire

SPEC = FrameSpec.dense(3, 4, "uint16")
absences = st.dictionaries(
    st.integers(0, 19),
    st.builds(Absence, st.sampled_from(list(Fate)), st.text(max_size=5), st.text(max_size=5)),
)
logged = st.tuples(
    st.lists(st.floats(allow_nan=False), max_size=3),
    st.lists(st.floats(allow_nan=False) | st.text(), max_size=3),
    st.text(),
)
messages = st.one_of(
    st.builds(wire.Start, st.text(), st.integers(0, 9)),
    st.builds(wire.Last, st.text(), st.integers(0, 9), st.integers(0, 99)),
    st.builds(wire.End, st.text(), st.integers(0, 9), st.booleans()),
    st.builds(
        wire.Statistics,
        st.text(),
        st.integers(0, 9),
        st.text(),
        st.floats(allow_nan=False),
        st.dictionaries(st.text(), st.floats(allow_nan=False)),
        st.floats(allow_nan=False),
        st.integers(0, 2**40),
    ),
    st.builds(
        wire.Account,
        st.text(),
        st.integers(0, 9),
        st.binary(),
        st.text(),
        st.lists(st.text()),
        st.dictionaries(st.text(), logged, max_size=3),
    ),
    st.builds(
        wire.Closed,
        st.text(),
        st.integers(0, 9),
        st.text(),
        st.dictionaries(st.text(), st.lists(st.text())),
        st.lists(st.text()),
    ),
)


@given(messages)
def test_a_message_comes_back_as_it_was(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(content)


@given(st.binary(max_size=200))
def test_random_bytes_behind_the_magic_are_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode(wire.seal(content))


@given(messages, st.data())
def test_a_changed_message_is_refused_or_is_another_message(
    message: wire.Message, data: st.DataObject
) -> None:
    content = bytearray(wire.encode(message))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        decoded = wire.decode(bytes(content))
    except ProtocolError:
        return
    assert decoded != message


def test_another_version_is_refused_with_both_versions() -> None:
    content = bytearray(wire.encode(wire.Start("r", 0)))
    content[4] = 9
    with pytest.raises(ProtocolError, match=f"version 9, where version {wire.VERSION} is spoken:"):
        wire.decode(bytes(content))


@given(absences)
def test_absences_come_back_as_they_were(found: dict[int, Absence]) -> None:
    ranges = packing.pack_absences(found)
    assert packing.unpack_absences(ranges, 20) == found
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(ranges))
    assert packing.unpack_absences(plain, 20) == found


def test_equal_absences_of_neighbours_travel_as_one() -> None:
    gap = Absence(Fate.DETECTOR_GAP, "simulator")
    assert len(packing.pack_absences(dict.fromkeys(range(1000), gap))) == 1


def test_an_absence_beyond_the_block_is_refused() -> None:
    with pytest.raises(ProtocolError, match="block of 4 frames"):
        packing.unpack_absences([(3, 2, 10, "x", "")], 4)
    with pytest.raises(ProtocolError, match="unknown fate 77"):
        packing.unpack_absences([(0, 1, 77, "x", "")], 4)


def _message(block: Block) -> wire.BlockMessage:
    return wire.BlockMessage(
        "run",
        1,
        2,
        block.index,
        block.count,
        -1,
        packing.pack_absences(block.absences),
        packing.pack_columns(block.columns),
        block.acquired_at,
    )


@given(st.integers(1, 20), st.integers(0, 10**12))
def test_a_block_comes_back_as_it_was(count: int, index: int) -> None:
    data = np.arange(count * 12, dtype=np.uint16).reshape(count, 1, 3, 4)
    gone = {0: Absence(Fate.CORRUPT, "plugin", "crc")} if count > 1 else {}
    columns = {"timestamp": np.linspace(0, 1, count)}
    block = Block(SPEC, index, count, data, gone, columns, (1, 2), 1.7e9)
    back = packing.block_of(_message(block), SPEC, 20, data.tobytes())
    assert (back.index, back.count, back.absences, back.origin) == (index, count, gone, (1, 2))
    assert back.acquired_at == 1.7e9
    assert back.data is not None
    np.testing.assert_array_equal(back.data, data)
    np.testing.assert_array_equal(back.columns["timestamp"], block.columns["timestamp"])


@pytest.mark.parametrize("wrong", [b"", b"x" * 23, b"x" * 25])
def test_pixels_of_the_wrong_size_are_refused(wrong: bytes) -> None:
    block = Block(SPEC, 0, 1, np.zeros((1, 1, 3, 4), np.uint16))
    with pytest.raises(ProtocolError, match="not 24"):
        packing.block_of(_message(block), SPEC, 20, wrong)


def test_missing_pixels_are_refused_unless_all_are_absent() -> None:
    block = Block(SPEC, 0, 2, np.zeros((2, 1, 3, 4), np.uint16))
    with pytest.raises(ProtocolError, match="without pixels"):
        packing.block_of(_message(block), SPEC, 20, None)
    gone = Block.absent(SPEC, 0, 2, Absence(Fate.DETECTOR_GAP, "x"))
    assert packing.block_of(_message(gone), SPEC, 20, None).data is None


@pytest.mark.parametrize(
    "column", [("|O8", b"12345678"), ("<f8", b"1234567"), ("<f8", b"1" * 16), ("nonsense", b"")]
)
def test_columns_that_are_not_one_number_a_frame_are_refused(column: tuple[str, bytes]) -> None:
    with pytest.raises(ProtocolError, match="column c"):
        packing.unpack_columns({"c": column}, 1)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 2**16))
def test_encoded_frames_travel_as_the_bytes_that_are_used(sizes: list[int], seed: int) -> None:
    spec = FrameSpec.encoded(SPEC, "bslz4", 12)
    data = np.random.default_rng(seed).integers(0, 256, (len(sizes), 12)).astype(np.uint8)
    block = Block(spec, 5, len(sizes), data, columns={SIZES: np.array(sizes, np.uint64)})
    content = packing.content_of(block)
    assert content.nbytes == sum(sizes)
    packed = packing.pack_columns(block.columns)
    message = wire.BlockMessage("r", 0, 0, 5, len(sizes), -1, [], packed)
    found = packing.block_of(message, FrameSpec.from_plain(spec.plain()), 6, bytes(content))
    assert found.spec == spec
    for offset, size in enumerate(sizes):
        assert bytes(found.payload(offset)) == bytes(data[offset, :size])
    for wrong in (bytes(content) + b"x", bytes(content)[:-1] if sum(sizes) else b"y"):
        with pytest.raises(ProtocolError, match="bytes of encoded frames"):
            packing.block_of(message, spec, 6, wrong)


@pytest.mark.parametrize("columns", [{}, {SIZES: np.array([-1, 5])}, {SIZES: np.array([2.0, 2.0])}])
def test_encoded_frames_without_their_sizes_are_refused(columns: dict[str, Array]) -> None:
    spec = FrameSpec.encoded(SPEC, "bslz4", 12)
    message = wire.BlockMessage("r", 0, 0, 0, 2, -1, [], packing.pack_columns(columns))
    with pytest.raises(ProtocolError, match="without their sizes"):
        packing.block_of(message, spec, 2, b"1234")
