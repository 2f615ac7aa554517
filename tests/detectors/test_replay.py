"""Recorded files come out of the replay as they went in, whatever their format and faults."""

from __future__ import annotations

import bz2
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
from fabio.cbfimage import CbfImage
from fabio.edfimage import EdfImage
from fabio.tifimage import TifImage
from lima2py_detectors.replay import Replay

from lima2py.acquisition import Acquisition
from lima2py.detector import Detector, Share, Slot
from lima2py.errors import BadParameter
from lima2py.frame import SIZES, Absence, Block, Fate, Frame, FrameSpec, Ragged
from lima2py.testing.detectors import DetectorTests, fill_once, prepare_and_start, read_all
from tests.storage.made_up import LOST, MadeUpRun, round_robin
from tests.system.rig import unpack

FAST = Acquisition(nb_frames=0, expo_time=1e-6)
SHAPE = (7, 9)


def pictures(count: int, dtype: str = "uint16", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    dice = np.random.default_rng(count)
    return dice.integers(0, 100, (count, *shape)).astype(dtype)


def write_images(folder: Path, kind: str, frames: np.ndarray) -> list[Path]:
    classes = {"tif": TifImage, "edf": EdfImage, "cbf": CbfImage}
    paths = []
    for number, frame in enumerate(frames, 7):  # 7, 8, ... 10, 11: not in alphabetical order
        path = folder / f"scan2_{number}.{kind}"
        classes[kind.removesuffix(".bz2")](data=frame).write(str(path).removesuffix(".bz2"))
        if kind.endswith(".bz2"):
            plain = path.with_suffix("")
            path.write_bytes(bz2.compress(plain.read_bytes()))
            plain.unlink()
        paths.append(path)
    return paths


def write_stack(path: Path, frames: np.ndarray, name: str = "entry/data/data", **how: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=frames, **how)
    return path


def replay(files: object, **parameters: object) -> Replay:
    if isinstance(files, Path):
        files = str(files)
    return Replay.load({"files": files, **parameters}, "test")


def replayed(
    detector: Replay, acquisition: Acquisition = FAST, rooms: Sequence[int] = (16,)
) -> np.ndarray:
    try:
        return np.array([frame.data for frame in read_all(detector, acquisition, rooms=rooms)])
    finally:
        detector.close()


def absence(frame: Frame) -> Absence:
    assert frame.absence is not None
    return frame.absence


class ReplayTests(DetectorTests):
    parameters: ClassVar[dict[str, object]] = {}

    def write(self, folder: Path) -> str:
        raise NotImplementedError

    @pytest.fixture
    def detector(self, tmp_path: Path) -> Detector:
        return Replay.load({"files": self.write(tmp_path), **self.parameters}, "test")


class TestReplayOfAStack(ReplayTests):
    def write(self, folder: Path) -> str:
        return str(write_stack(folder / "stack.h5", pictures(30), chunks=(4, *SHAPE)))


class TestReplayOfSeveralStacksInLoops(ReplayTests):
    parameters: ClassVar = {"loops": 3, "step": 2, "first": 1, "name": "tape", "pace": "flat_out"}

    def write(self, folder: Path) -> str:
        write_stack(folder / "a2.h5", pictures(3, ">f4", (2, *SHAPE)))
        write_stack(folder / "a10.h5", pictures(6, ">f4", (2, *SHAPE)))
        return str(folder / "a*.h5")


class TestReplayOfImages(ReplayTests):
    def write(self, folder: Path) -> str:
        write_images(folder, "tif", pictures(12, "int32"))
        return str(folder / "*.tif")


class TestReplayOfImagesWithFaults(ReplayTests):
    def write(self, folder: Path) -> str:
        paths = write_images(folder, "edf", pictures(12, "float32"))
        paths[4].write_bytes(b"nothing that could be decoded")
        return str(folder / "*.edf")


# Formats


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("kind", ["tif", "edf", "cbf", "cbf.bz2"])
def test_images_are_replayed_as_fabio_reads_them_in_natural_order(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    paths = write_images(tmp_path, kind, pictures(5, dtype))
    detector = replay(tmp_path / f"*.{kind}")
    found = replayed(detector)
    for path, frame in zip(paths, found, strict=True):
        with fabio.open(str(path)) as image:
            assert frame.dtype == image.data.dtype
            np.testing.assert_array_equal(frame, image.data)


def test_several_frames_in_an_image_file_are_all_replayed(tmp_path: Path) -> None:
    paths = []
    for number, count in enumerate((3, 2)):
        frames = pictures(count)
        image = EdfImage(data=frames[0])
        for frame in frames[1:]:
            image.append_frame(data=frame)
        paths.append(str(tmp_path / f"{number}.edf"))
        image.write(paths[-1])
    found = replayed(replay(paths, step=2), rooms=(2,))
    np.testing.assert_array_equal(found, [*pictures(3)[::2], *pictures(2)[1:]])


@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2", ">i4", "<u8", "<f4", ">f8"])
@pytest.mark.parametrize("bands", [None, 3])
def test_a_stack_is_replayed_in_native_byte_order(
    tmp_path: Path, dtype: str, bands: int | None
) -> None:
    frames = pictures(5, dtype, SHAPE if bands is None else (bands, *SHAPE))
    how = {"chunks": (2, *frames.shape[1:]), **hdf5plugin.Bitshuffle(cname="lz4")}
    path = write_stack(tmp_path / "a.h5", frames, **how)
    detector = replay(path)
    assert detector.info.bands == (bands or 1)
    found = replayed(detector)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, frames)


def test_one_image_in_an_hdf5_file_is_a_stack_of_one(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "a.h5", pictures(1)[0])
    np.testing.assert_array_equal(replayed(replay(path)), pictures(1))


def test_what_a_viewer_shows_is_replayed_else_the_largest_stack(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["large"] = pictures(20)
        file["curve"] = np.arange(10_000)
        file["complex"] = np.zeros((50, *SHAPE), complex)
        file["entry/instrument/eiger/plot/data"] = pictures(6)
    np.testing.assert_array_equal(replayed(replay(path)), pictures(20))
    np.testing.assert_array_equal(replayed(replay(path, step=5)), pictures(20)[::5])
    with h5py.File(path, "a") as file:
        file.attrs["default"] = "entry"
        file["entry"].attrs["default"] = np.bytes_("instrument/eiger/plot")
        file["entry/instrument/eiger/plot"].attrs["signal"] = "data"
    np.testing.assert_array_equal(replayed(replay(path)), pictures(6))
    np.testing.assert_array_equal(replayed(replay(path, dataset="/large")), pictures(20))
    with h5py.File(path, "a") as file:  # the default is a curve: no use
        file["entry"].attrs["default"] = "/"
        file.attrs["signal"] = "curve"
        file["gone"] = h5py.ExternalLink("gone.h5", "/data")
    np.testing.assert_array_equal(replayed(replay(path)), pictures(20))
    with h5py.File(path, "a") as file:
        file.attrs["default"] = "gone"
    np.testing.assert_array_equal(replayed(replay(path)), pictures(20))


def test_a_virtual_dataset_is_replayed_and_refused_when_a_file_of_it_is_missing(
    tmp_path: Path,
) -> None:
    frames = pictures(6)
    layout = h5py.VirtualLayout(frames.shape, frames.dtype)
    for node in range(2):
        path = write_stack(tmp_path / f"node{node}.h5", frames[node::2], "data")
        layout[node::2] = h5py.VirtualSource(path.name, "data", (3, *SHAPE))
    with h5py.File(tmp_path / "master.h5", "w", libver=("v110", "v110")) as file:
        file.create_virtual_dataset("data", layout)
    np.testing.assert_array_equal(replayed(replay(tmp_path / "master.h5")), frames)
    (tmp_path / "node1.h5").unlink()
    with pytest.raises(
        BadParameter, match=r"master.h5: node1.h5, to which it refers .* is missing"
    ):
        _ = replay(tmp_path / "master.h5").info


# Selection and number of frames


def test_a_selection_is_taken_across_files_and_repeated(tmp_path: Path) -> None:
    for number, count in enumerate((4, 3, 5)):
        write_stack(tmp_path / f"{number}.h5", pictures(12)[[0, 4, 7][number] :][:count])
    detector = replay(tmp_path / "*.h5", first=1, step=3, last=9, loops=2)
    expected = [*pictures(12)[1:10:3]] * 2
    np.testing.assert_array_equal(replayed(detector, rooms=(4, 1)), expected)
    endless = replay(tmp_path / "*.h5", loops=0)
    acquisition = Acquisition(nb_frames=30, expo_time=1e-6)
    np.testing.assert_array_equal(
        replayed(endless, acquisition), [*pictures(12), *pictures(12), *pictures(12)[:6]]
    )


def test_nb_frames_0_becomes_all_there_is(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "a.h5", pictures(5))
    for loops, expected in ((1, 5), (3, 15), (0, 0)):
        detector = replay(path, loops=loops)
        assert detector.prepare(FAST, Share()).nb_frames == expected


def test_more_frames_than_there_are_are_refused_with_a_way_out(tmp_path: Path) -> None:
    detector = replay(write_stack(tmp_path / "a.h5", pictures(5)), name="tape")
    says = r"tape, nb_frames 11: its files have 5 frames and loops is 1; ask for 5 .* loops to 3"
    with pytest.raises(BadParameter, match=says):
        detector.prepare(Acquisition(nb_frames=11), Share())


# Refusals


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"files": []}, "files: .*at least 1 item"),
        ({"files": ["", "a"]}, "files.0: .*at least 1 char"),
        ({"pace": "slow"}, "pace: should be own, flat_out, or the time"),
        ({"pace": 0}, "pace: should be own"),
        ({"pace": True}, "pace: should be own"),
        ({"pace": "2 lightyears"}, "pace: should be own"),
        ({"loops": -1}, "loops: should be greater"),
        ({"step": 0}, "step: should be greater"),
    ],
)
def test_wrong_parameters_are_refused_by_name(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(BadParameter, match=says):
        Replay.load({"files": "a.tif", **wrong}, "test")


def test_files_that_cannot_be_replayed_are_refused_when_they_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("this is no picture")
    (tmp_path / "empty").mkdir()
    write_stack(tmp_path / "curve.h5", np.arange(5))
    write_stack(tmp_path / "ok.h5", pictures(3))
    (tmp_path / "broken.h5").write_bytes((tmp_path / "ok.h5").read_bytes()[:600])
    for parameters, says in (
        ({"files": f"{tmp_path}/*.cbf"}, r"files: there is no file .*\*.cbf"),
        ({"files": f"{tmp_path}/empty"}, "is a folder; say which files, for instance .*empty/"),
        ({"files": f"{tmp_path}/text.tif"}, "text.tif: "),
        ({"files": f"{tmp_path}/curve.h5"}, "curve.h5: holds no stack of images"),
        ({"files": f"{tmp_path}/ok.h5", "dataset": "/no"}, "ok.h5: /no is not a stack"),
        ({"files": f"{tmp_path}/ok.h5", "first": 3}, "no frame is left between first 3 and last"),
        ({"files": [f"{tmp_path}/ok.h5", f"{tmp_path}/broken.h5"]}, "broken.h5: "),
    ):
        with pytest.raises(BadParameter, match=says):
            _ = Replay.load({"name": "tape", **parameters}, "test").info


def test_a_missing_fabio_is_named_with_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, "tif", pictures(1))
    monkeypatch.setitem(sys.modules, "fabio", None)
    with pytest.raises(
        BadParameter, match=r'tif is opened by fabio.*pip install "lima2py\[replay\]"'
    ):
        _ = replay(tmp_path / "*.tif").info


# Faults of single frames


def test_images_that_cannot_be_decoded_are_corrupt_and_the_rest_goes_on(tmp_path: Path) -> None:
    frames = pictures(8)
    paths = write_images(tmp_path, "tif", frames)
    paths[1].write_bytes(paths[1].read_bytes()[:20])
    write = TifImage(data=pictures(1, "uint16", (3, 4))[0]).write
    write(str(paths[3]))
    TifImage(data=frames[5].astype("uint8")).write(str(paths[5]))
    detector = replay(tmp_path / "*.tif", name="tape")
    assert detector.info.shape == SHAPE
    paths[6].unlink()
    detector.prepare(FAST, Share())
    found = read_all(detector, FAST, rooms=(3,))
    detector.close()
    for frame, expected in zip(found, frames, strict=True):
        if frame.index in (1, 3, 5, 6):
            assert absence(frame).cause is Fate.CORRUPT
            assert absence(frame).who == "tape"
            assert paths[frame.index].name in absence(frame).detail
        else:
            np.testing.assert_array_equal(frame.data, expected)
    assert "1 × 3 × 4 uint16 where 1 × 7 × 9 uint16 is due" in absence(found[3]).detail
    assert "1 × 7 × 9 uint8 where" in absence(found[5]).detail


def test_a_damaged_chunk_costs_only_its_own_frame(tmp_path: Path) -> None:
    frames = pictures(8)
    how = {"chunks": (1, *SHAPE), "compression": "gzip"}
    path = write_stack(tmp_path / "a.h5", frames, "data", **how)
    with h5py.File(path, "a") as file:
        file["data"].id.write_direct_chunk((2, 0, 0), b"no deflate stream at all")
    write_stack(tmp_path / "b.h5", pictures(2, "uint16", (3, 4)))
    found = read_all(replay(tmp_path / "*.h5"), FAST)
    assert [frame.index for frame in found if frame.absence] == [2, 8, 9]
    assert "a.h5, frame 2: " in absence(found[2]).detail
    assert "b.h5: 1 × 3 × 4 uint16 where" in absence(found[9]).detail
    for frame in found[:8]:
        assert frame.absence or (frame.data == frames[frame.index]).all()


# Files of ours


OURS = FrameSpec.dense(128, 130, np.uint16)
"""Large enough for each to be a chunk of its own."""


def test_frames_that_were_not_recorded_stay_absent_with_their_reason(tmp_path: Path) -> None:
    run = round_robin(FrameSpec.dense(*SHAPE, "u2", bands=2), 20, 3, 2, absent=[0, 7, 19])
    master = run.write(tmp_path / "a", frames_per_file=4)
    detector = replay(Path(master), pace="own")
    assert detector.info.pixel_size == (75e-6, 50e-6)
    found = read_all(detector, FAST, rooms=(7,))
    detector.close()
    for frame, expected in zip(found, run.expected(), strict=True):
        if frame.index in (0, 7, 19):
            assert absence(frame).cause is Fate.DETECTOR_GAP
            assert f"recorded: {LOST} ({master})" in absence(frame).detail
        else:
            np.testing.assert_array_equal(frame.data, expected)
        assert frame.timestamp == 1e9 + frame.index / 8


@pytest.mark.parametrize("encoded", [False, True])
def test_the_file_of_a_node_is_replayed_in_its_order(tmp_path: Path, encoded: bool) -> None:
    run = round_robin(OURS, 12, 2, 2, absent=[2, 5])
    run.write(tmp_path / "a")
    for rank in range(2):
        (path,) = run.node_files[rank]
        mine = [index for index in range(12) if run.table.node[index] == rank]
        found = read_all(replay(Path(path), encoded=encoded), FAST)
        lost = [mine[frame.index] for frame in found if frame.absence]
        assert lost == ([5] if rank == 0 else [2])
        for frame in found:
            if frame.data is not None:
                np.testing.assert_array_equal(frame.data, run.expected()[mine[frame.index]])


def test_sparse_pixels_are_replayed_as_images(tmp_path: Path) -> None:
    spec = FrameSpec("sparse", (1, *SHAPE), np.dtype([("index", "u4"), ("value", "i4")]))
    images = pictures(9, "i4") % 5
    rows = [np.flatnonzero(image) for image in images]
    columns = {
        "index": np.concatenate(rows).astype("u4"),
        "value": np.concatenate([image[image != 0] for image in images]),
    }
    data = Ragged.of(np.array([len(index) for index in rows]), columns)
    run = MadeUpRun(spec, [(0, Block(spec, 0, 9, data))], 9, 9)
    np.testing.assert_array_equal(replayed(replay(Path(run.write(tmp_path / "a")))), images)


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    run = round_robin(FrameSpec("vector", (7,), np.dtype("f4")), 4, 1, 1)
    with pytest.raises(BadParameter, match=r"raw saved vector of 7, and no images"):
        _ = replay(Path(run.write(tmp_path / "a"))).info


def test_a_master_without_its_files_is_refused_when_it_is_looked_at(tmp_path: Path) -> None:
    run = round_robin(OURS, 12, 2, 2)
    master = run.write(tmp_path / "a", frames_per_file=3)
    gone = Path(run.node_files[1][1])
    gone.unlink()
    with pytest.raises(BadParameter, match=f"not there: {gone}"):
        _ = replay(Path(master)).info


def test_no_file_stays_open_when_all_frames_have_come_or_it_is_stopped(tmp_path: Path) -> None:
    """For in one process HDF5 opens no file twice in two ways."""
    ours = round_robin(OURS, 4, 2, 1).write(tmp_path / "a")
    theirs = write_stack(tmp_path / "b.h5", pictures(4))
    for path in (Path(ours), theirs):
        detector = replay(path)
        read_all(detector, FAST)
        with h5py.File(path, "r+"):
            pass
        _, spec = prepare_and_start(detector, FAST)
        assert fill_once(detector, spec, 0, 1)
        detector.stop()
        assert fill_once(detector, spec, 1, 1) is None
        with h5py.File(path, "r+"):
            pass


# Time


class Watch:
    """A clock that is set by hand, in place of `time`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1.6e9


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr("lima2py_detectors.replay.time", watch)
    monkeypatch.setattr("lima2py.detector.time", watch)
    monkeypatch.setattr("lima2py.detector.PATIENCE", 1e-3)
    return watch


def arrivals(detector: Replay, acquisition: Acquisition, count: int, watch: Watch) -> list[float]:
    """When frames come, in seconds after the start, on a clock that ticks in halves of seconds."""
    _, spec = prepare_and_start(detector, acquisition)
    start, times, index = watch.now, [], 0
    while index < count and watch.now < start + 1000:
        got = fill_once(detector, spec, index, 3) or []
        times += [watch.now - start] * len(got)
        index += len(got)
        watch.now += 0 if got else 0.5
    detector.close()
    return times


ASKED = Acquisition(nb_frames=4, expo_time=1.5, latency_time=0.5)


@pytest.mark.parametrize(
    ("pace", "times"),
    [
        (None, [1.5, 3.5, 5.5, 7.5]),
        ("flat_out", [0, 0, 0, 0]),
        (3, [3, 6, 9, 12]),
        ("500 ms", [0.5, 1, 1.5, 2]),
        ("own", [1.5, 3.5, 5.5, 7.5]),  # the file says nothing
    ],
)
def test_frames_come_at_the_pace_that_was_asked_for(
    tmp_path: Path, watch: Watch, pace: object, times: list[float]
) -> None:
    path = write_stack(tmp_path / "a.h5", pictures(4))
    assert arrivals(replay(path, pace=pace), ASKED, 4, watch) == times


def test_frames_come_as_they_were_recorded(tmp_path: Path, watch: Watch) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("entry/instrument/eiger")
        group["data"] = pictures(3)
        group["frame_time"] = 2000.0
        group["frame_time"].attrs["units"] = "ms"
        group["x_pixel_size"], group["y_pixel_size"] = 75e-6, 50e-6
    detector = replay(path, pace="own", loops=2, step=2)
    assert detector.info.pixel_size == (75e-6, 50e-6)
    assert arrivals(detector, ASKED, 4, watch) == [4, 8, 12, 16]
    with h5py.File(path, "a") as file:
        file["entry/instrument/eiger/timestamp"] = np.array([1.5e9, 1.5e9 + 1, 1.5e9 + 7])
    again = arrivals(replay(path, pace="own", loops=2), ASKED, 4, watch)
    assert again == [0, 1, 7, 10.5]  # 3.5 s, the mean, from the last to the first
    found = read_all(replay(path, pace="flat_out"), FAST)
    assert [frame.timestamp for frame in found] == [1.5e9, 1.5e9 + 1, 1.5e9 + 7]


def test_times_count_from_the_start_the_file_names(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = pictures(2)
        file["timestamp"] = [0.0, 2.5]
        file["timestamp"].attrs["start"] = "2020-02-04T12:00:00+00:00"
    detector = replay(tmp_path / "a.h5")
    found = [frame.timestamp for frame in read_all(detector, FAST)]
    assert found == [1580817600.0, 1580817602.5]
    detector.close()


def test_frames_of_unknown_time_are_stamped_when_they_are_due(tmp_path: Path, watch: Watch) -> None:
    detector = replay(write_stack(tmp_path / "a.h5", pictures(2)), pace=1.0)
    _, spec = prepare_and_start(detector, FAST)
    watch.now += 5
    got = fill_once(detector, spec, 0, 2) or []
    assert [frame.timestamp for frame in got] == [1.6e9 + 101, 1.6e9 + 102]
    detector.close()


def test_no_frame_comes_before_its_time(tmp_path: Path) -> None:
    detector = replay(write_stack(tmp_path / "a.h5", pictures(5)), pace="10 ms")
    begin = time.monotonic()
    replayed(detector)
    assert time.monotonic() - begin >= 0.05


# Real data


@pytest.fixture(scope="module")
def timepix(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = shared_data / "aps34idc_bcdi.tar.xz"
    if not archive.exists():
        pytest.skip(f"the recorded data are absent: there is no {archive}")
    folder = tmp_path_factory.mktemp("timepix")
    with tarfile.open(archive) as tar:
        unpack(tar, folder)
    return folder / "example" / "exp_data" / "Staff20-1a_S0054"


def test_the_timepix_frames_are_replayed_bit_by_bit(timepix: Path) -> None:
    paths = sorted(timepix.glob("*.tif"))
    assert len(paths) == 201
    found = replayed(replay(timepix / "*.tif", pace="flat_out"), rooms=(8,))
    assert found.dtype == np.int32
    for frame, path in zip(found, paths, strict=True):
        with fabio.open(str(path)) as image:
            np.testing.assert_array_equal(frame, image.data)


def test_pilatus_frames_are_replayed_with_time_and_pixel_size(shared_data: Path) -> None:
    paths = [shared_data / "dials_thaumatin_grid" / f"thau_3_2_000{n}.cbf.bz2" for n in (1, 2)]
    if not all(path.exists() for path in paths):
        pytest.skip(f"the recorded data are absent: there is no {paths[0]}")
    detector = replay([str(path) for path in paths], pace="own")
    assert detector.info.pixel_size == (172e-6, 172e-6)
    assert detector.info.shape == (2527, 2463)
    frames = read_all(detector, FAST, rooms=(1,))
    detector.close()
    local = time.strftime("%FT%T", time.localtime(frames[0].timestamp))
    assert local == "2019-09-11T13:20:28"
    assert frames[1].timestamp - frames[0].timestamp == pytest.approx(0.04)  # 29.029
    for frame, path in zip(frames, paths, strict=True):
        with fabio.open(str(path)) as image:
            np.testing.assert_array_equal(frame.data, image.data)


# Compressed frames, as they are stored

BSLZ4 = hdf5plugin.Bitshuffle(cname="lz4")
STORED: dict[str, dict[str, Any]] = {
    "none": {},
    "gzip": {"compression": "gzip", "compression_opts": 4},
    "lz4": dict(hdf5plugin.LZ4()),
    "bslz4": dict(BSLZ4),
    "bszstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
}


class TestReplayOfCompressedFrames(ReplayTests):
    parameters: ClassVar = {"encoded": True, "loops": 2, "step": 2}

    def write(self, folder: Path) -> str:
        write_stack(folder / "a1.h5", pictures(9), chunks=(1, *SHAPE), **BSLZ4)
        write_stack(folder / "a2.h5", pictures(11), chunks=(1, *SHAPE), **BSLZ4)
        return str(folder / "a*.h5")


@pytest.mark.parametrize("shape", [SHAPE, (3, *SHAPE)], ids=str)
@pytest.mark.parametrize("encoding", STORED)
def test_frames_are_handed_on_as_they_are_stored(
    tmp_path: Path, encoding: str, shape: tuple[int, ...]
) -> None:
    frames = pictures(6, shape=shape)
    path = write_stack(tmp_path / "a.h5", frames, chunks=(1, *shape), **STORED[encoding])
    with h5py.File(path) as file:
        stack = file["entry/data/data"]
        stored = [stack.id.read_direct_chunk((n, *[0] * len(shape)))[1] for n in range(6)]
    detector = replay(path, encoded=True)
    _, spec = prepare_and_start(detector, FAST)
    assert spec.decoded is not None
    assert spec.decoded.encoding == encoding
    assert spec.shape == (max(map(len, stored)),)
    slot = Slot(0, np.empty((6, *spec.shape), np.uint8), np.empty(6), {SIZES: np.zeros(6, "u8")})
    assert detector.wait(time.monotonic() + 0.001)
    assert detector.fill(slot) == 6
    block = Block(spec, 0, 6, slot.data, columns=slot.columns)
    assert [bytes(block.payload(n)) for n in range(6)] == stored
    detector.close()
    np.testing.assert_array_equal(replayed(replay(path, encoded=True)), frames)


def test_compressed_frames_that_cannot_be_had_are_told_one_by_one(tmp_path: Path) -> None:
    """One was never written, one is stored uncompressed."""
    frames = pictures(8)
    path = write_stack(
        tmp_path / "a.h5", frames[:6], chunks=(1, *SHAPE), maxshape=(None, *SHAPE), **BSLZ4
    )
    with h5py.File(path, "a") as file:
        stack = file["entry/data/data"]
        stack.resize(8, axis=0)
        stack.id.write_direct_chunk((6, 0, 0), frames[6].tobytes(), filter_mask=1)
    read = read_all(replay(path, encoded=True), FAST)
    assert {frame.index: absence(frame).cause for frame in read if frame.absence} == {
        6: Fate.CORRUPT,
        7: Fate.CORRUPT,
    }
    assert "uncompressed" in absence(read[6]).detail
    for at in range(6):
        np.testing.assert_array_equal(read[at].data, frames[at])


def test_what_cannot_be_handed_on_compressed_is_refused_with_a_way_out(tmp_path: Path) -> None:
    frames = pictures(8)
    shuffled: dict[str, Any] = {"compression": "gzip", "shuffle": True}
    whole = write_stack(tmp_path / "whole.h5", frames)
    shared = write_stack(tmp_path / "shared.h5", frames, chunks=(2, *SHAPE), **BSLZ4)
    two = write_stack(tmp_path / "two.h5", frames, chunks=(1, *SHAPE), **shuffled)
    other = write_stack(tmp_path / "other.h5", frames, chunks=(1, *SHAPE), **hdf5plugin.Zstd())
    foreign = write_stack(tmp_path / "be.h5", frames.astype(">u2"), chunks=(1, *SHAPE), **BSLZ4)
    virtual = tmp_path / "virtual.h5"
    with h5py.File(virtual, "w") as file:
        layout = h5py.VirtualLayout((8, *SHAPE), "u2")
        layout[:] = h5py.VirtualSource("whole.h5", "entry/data/data", (8, *SHAPE))
        file.create_virtual_dataset("data", layout)
    ours = Path(
        round_robin(FrameSpec.dense(*SHAPE, np.uint16), 4, 1, 1, absent=[1]).write(tmp_path / "a")
    )
    (image,) = write_images(tmp_path, "tif", frames[:1])
    for path, says in {
        whole: "without chunks.*set encoded: false",
        shared: r"in chunks of \(2, 7, 9\).*each must be a chunk of its own.*encoded: false",
        two: "shuffle and .*handed on as they are.*bslz4.*encoded: false",
        other: "compressed by .*encoded: false",
        foreign: "byte order.*encoded: false",
        virtual: "lie in other files.*name those files: whole.h5",
        ours: r"lie in other files.*name those files: a_0_00000\.h5$",
        image: "no HDF5 file.*encoded: false",
    }.items():
        with pytest.raises(BadParameter, match=f"files: .*{path.name}.*{says}"):
            replay(path, encoded=True).prepare(FAST, Share())
