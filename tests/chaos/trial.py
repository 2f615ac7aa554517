"""A trial: a run on random nodes, with random work, to which random things happen.

Everything random comes from the seed, so that a trial can be had again:
`CHAOS_SEEDS=17 make chaos`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lima2py.session.report import Report
from lima2py.session.session import Session
from lima2py.session.system import System
from lima2py.storage.care.recover import recover
from tests.chaos.audit import SINKS, TASKS, Taken, audit, of_leftovers, of_masters
from tests.chaos.faults import LIMIT, LOSSES, Events, Fault
from tests.system.test_disk_failures import mounted

AFTER = 40
"""Frames of the run that follows, which nothing is done to."""
DISK = 2**28
"""Bytes of the disk that is filled."""
ENDINGS = ("stop", "abort", "kill acquisition", "kill everything")
"""What a run does not survive whole; at most one of them happens to a run."""
CAUSES = {
    "stop": "not_acquired",
    "abort": "aborted",
    "kill acquisition": "node_lost",
    "kill everything": "node_lost",
    "die": "poison",
    "hang": "deadline",
}
"""Why frames may be absent afterwards."""
TRIP = """
import os, signal, time
import numpy as np

class Trip:
    def __init__(self, how, first):
        self.how, self.first = how, first

    def __call__(self, frame):
        if np.array_equal(frame[0, : len(self.first)], self.first):
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
"""
"""What a node trips over: one frame, known by its first pixels."""
LATE = {"disk": "fast"}
"""What the nodes of the second stage have."""
OTHER = "other"
"""The second detector."""


@dataclass(frozen=True)
class Trial:
    """What a seed stands for.

    Attributes:
        late: how many nodes a second stage has; 0 if there is none.
        needy: what only those can do.
        events: which events have a frame of a second detector; empty if there is none.
    """

    seed: int
    modules: bool
    acquisition: int
    processing: int
    late: int
    needy: tuple[str, ...]
    events: tuple[int | None, ...]
    sinks: tuple[str, ...]
    per_file: int
    shape: tuple[int, int]
    frames: int
    period: float
    ring: int
    dropped: tuple[int, ...]
    trips: dict[str, int]
    policies: dict[str, Any]
    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, seed: int) -> Trial:
        """The trial of a seed."""
        chance = random.Random(seed)
        processing = chance.randint(1, 4)
        side, period = chance.choice([(24, 2e-4), (64, 1e-3), (64, 1e-6), (160, 5e-4)])
        frames = chance.randint(300, 1500) if period > 1e-5 else chance.randint(2000, 4000)
        acquisition = chance.choice([1, 1, 2])
        others = [name for name in SINKS if name != "raw"]
        trial = cls(
            seed=seed,
            modules=acquisition > 1 and random.Random(f"modules {seed}").random() < 0.6,
            acquisition=acquisition,
            processing=processing,
            late=0,
            needy=(),
            events=(),
            sinks=("raw", *sorted(chance.sample(others, chance.randint(0, len(others))))),
            per_file=chance.choice([0, 0, 37, 200]),
            shape=(side, side + 12),
            frames=frames,
            period=period,
            ring=chance.choice([2**20, 2**24, 2**28]),
            dropped=tuple(sorted(chance.sample(range(frames), chance.choice([0, 0, 7])))),
            trips={chance.choice(["die", "hang"]): chance.randrange(frames)}
            if chance.random() < 0.2
            else {},
            policies={
                "dispatch": chance.choice(["least_loaded", "round_robin"]),
                "node_loss": chance.choice([*["redispatch"] * 8, "mark", "stop"]),
                "overload": chance.choice(["wait", "wait", "drop"]),
                "disk": chance.choice(["mark", "wait"]),
                "block_deadline": 2.0,
                "join_timeout": 10.0,
                "restarts": 100,
                "node_patience": 30.0,
            },
            faults=tuple(sorted(_faults(chance, processing), key=lambda fault: fault.at)),
        )
        return trial._staged()._with_another()

    def _staged(self) -> Trial:
        """With a second stage, perhaps; then all nodes of both are struck alike."""
        chance = random.Random(f"stages {self.seed}")
        if chance.random() > 0.35:
            return self
        late = chance.randint(1, 3)
        needy = {name for name in (*TASKS, *self.trips) if chance.random() < 0.5}
        if "sums" in needy:
            needy.add("few")  # what stands for several frames cannot go on
        faults = tuple(
            replace(fault, node=chance.randrange(self.processing + late)) for fault in self.faults
        )
        ring = max(self.ring, 2**22)  # there is another one, of all that is handed on
        return replace(self, late=late, needy=tuple(sorted(needy)), faults=faults, ring=ring)

    def _with_another(self) -> Trial:
        """With a second detector, perhaps."""
        chance = random.Random(f"detectors {self.seed}")
        if chance.random() > 0.35 or (self.acquisition > 1 and not self.modules):
            return self
        events = chance.choice([(0,), (0, None, None), (None, 0, 1, None, None), (0, 0, 0)])
        policies = {**self.policies, "detector_loss": chance.choice(["stop", "wait"])}
        return replace(self, events=events, sinks=(*self.sinks, "theirs"), policies=policies)

    @property
    def kinds(self) -> list[str]:
        """What happens, in order."""
        return [fault.kind for fault in self.faults]

    def causes(self, happened: Sequence[str]) -> frozenset[str]:
        """Why frames may be absent, after what happened."""
        policies = self.policies
        causes = {CAUSES[kind] for kind in (*happened, *self.trips) if kind in CAUSES}
        if self.dropped:
            causes |= {"detector_gap"}
        if "disk" in happened and policies["disk"] != "wait":
            causes |= {"not_saved"}
        losses = [kind for kind in (*happened, *self.trips) if kind in (*LOSSES, "die", "hang")]
        if losses and policies["node_loss"] != "redispatch":
            causes |= {"node_lost" if policies["node_loss"] == "mark" else "not_acquired"}
        if len(losses) > 1:
            causes |= {"poison"}  # the same block may have been at work in both
        if happened.count("leave") >= min(self.processing, self.late or self.processing):
            causes |= {"node_lost"}  # whoever is told to leave is not started again
        if policies["overload"] == "drop":
            causes |= {"overrun", "incomplete"} if self.modules or self.events else {"overrun"}
        if (self.modules or self.events) and "kill acquisition" in happened:
            causes |= {"incomplete", "not_acquired"}
        return frozenset(causes)

    def graph(self, folder: Path, trips: Mapping[str, int]) -> Path:
        """Write down what is to be done, and over which frames nodes trip."""
        every = {**TASKS, "theirs": {"do": "save_dense", "from": OTHER}}
        needed = {"live", *self.sinks, *(every[sink]["from"] for sink in self.sinks)}
        if "chosen" in needed:
            needed |= {"spot"}
        tasks = {name: dict(every[name]) for name in every if name in needed}
        for name in self.sinks:
            tasks[name]["frames_per_file"] = self.per_file
        for how, frame in trips.items():
            (folder / "trip.py").write_text(TRIP)
            first = Taken(self.shape).frames(frame, 1)[0, 0, :16].tolist()
            tasks[how] = {"do": "python", "from": "detector", "file": str(folder / "trip.py"),
                          "call": "Trip", "with": {"how": how, "first": first}}  # fmt: skip
        for name in tasks.keys() & {*self.needy}:
            tasks[name]["needs"] = LATE
        path = folder / "graph.yaml"
        path.write_text(json.dumps({"tasks": tasks}))
        return path

    def system(self) -> System:
        """The nodes, and the detector."""
        modules = [[f"module_{n}_0"] if self.modules else [] for n in range(self.acquisition)]
        acquisition = [{"node": f"acq{n}", "modules": of_it} for n, of_it in enumerate(modules)]
        pattern = {"pattern": "verifiable", "shape": self.shape}
        values: dict[str, Any] = {
            "system": f"chaos {self.seed}",
            "detector": "simulator",
            "set": {
                **pattern,
                "drop": self.dropped,
                "modules": (self.acquisition, 1) if self.modules else (1, 1),
            },
            "acquisition": acquisition,
            "processing": [{"node": f"proc{n}"} for n in range(self.processing)],
            "memory": {"ring": self.ring},
        }
        if self.events:
            other = {"detector": "simulator", "set": {"name": OTHER, **pattern}}
            values["detectors"] = {OTHER: {**other, "events": self.events}}
            acquisition.append({"node": "of_other", "detector": OTHER})
        if self.late:
            values["processing"] += [
                {"node": f"late{n}", "stage": "late", "tags": LATE} for n in range(self.late)
            ]
            values["stages"] = {"processing": {"reserved": self.modules}}
        return System.load(values, "chaos")


def _faults(chance: random.Random, processing: int) -> Iterator[Fault]:
    for _ in range(chance.choice([1, 1, 2, 3])):
        kind = chance.choice(["kill", "kill", "freeze", "freeze", "leave", "slow", "disk"])
        seconds = chance.uniform(0.1, 0.6) if kind == "disk" else chance.uniform(0.2, 3)
        yield Fault(kind, chance.random(), chance.randrange(processing), seconds)
    if chance.random() < 0.4:
        yield Fault(chance.choice(ENDINGS), chance.random(), chance.randrange(12))


@dataclass
class Result:
    """What came of a trial.

    Attributes:
        seed: of it.
        problems: what is wrong, in words.
        done: the faults that happened: the run may be over before one is due.
        outcome: of the run.
        asked: frames asked for.
        absent: by cause.
        recovered: by kind of fault, the seconds until all that had been in flight was safe.
        skipped: what could not be done on this host.
        seconds: that the trial took.
        trial: what it was, for a person.
    """

    seed: int
    problems: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    outcome: str = ""
    asked: int = 0
    absent: dict[str, int] = field(default_factory=dict)
    recovered: list[tuple[str, float]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    trial: dict[str, Any] = field(default_factory=dict)


def carry_out(trial: Trial, folder: Path) -> Result:
    """Have it happen, and look at what came of it.

    Args:
        trial: to carry out.
        folder: empty, for the files.
    """
    began = time.monotonic()
    result = Result(trial.seed, trial=asdict(trial))
    disk = folder / "out"
    with ExitStack() as stack:
        if "disk" in trial.kinds:
            try:
                stack.enter_context(mounted(disk, DISK))
            except pytest.skip.Exception as why:
                result.skipped.append(str(why))
        session = stack.enter_context(Session.open(trial.system()))
        graph = trial.graph(folder, trial.trips)
        session.prepare(
            graph=graph, output=disk, nb_frames=trial.frames, expo_time=trial.period,
            policies=trial.policies,
        )  # fmt: skip
        faults = [fault for fault in trial.faults if fault.kind != "disk" or not result.skipped]
        events = Events(session, faults, max(trial.frames * trial.period, 0.5), disk)
        result.done, result.recovered = events.happened, events.recovered
        report = events.through()
        result.outcome, result.asked, result.absent = report.outcome, report.asked, report.absent
        result.problems += _judge(trial, report, disk, events)
        if not result.problems:
            result.problems += _next_run(session, trial, folder)
    result.seconds = time.monotonic() - began
    return result


def _judge(trial: Trial, report: Report, folder: Path, events: Events) -> list[str]:
    taken = Taken(trial.shape, trial.dropped, trial.events)
    missing = {*trial.sinks} - report.masters.keys()
    losing = {*LOSSES, *ENDINGS[2:], "slow"} & {*events.happened}
    unfinished = bool(trial.trips or losing or missing)
    everybody = frozenset(range(1000)) if unfinished else frozenset[int]()
    found = audit(report, taken, folder, trial.causes(events.happened), everybody)
    if missing and not {"disk", *ENDINGS[2:]} & {*events.happened}:
        found.append(f"no master of {sorted(missing)}: {report.errors}")
    if not unfinished:
        return found
    for one in recover(folder, force=True)[0]:  # what the lost ones left is put in order
        found += [*one.problems, *([f"left alone: {one.refused}"] if one.refused else ())]
    masters = sorted(folder.glob("*_master.h5"))
    found += of_masters(masters, taken)
    found += of_leftovers(folder, frozenset())
    if not masters and events.done_to:
        found.append(f"{events.done_to} frames were done, and there is no master")
    return found


def _next_run(session: Session, trial: Trial, folder: Path) -> list[str]:
    """The next run of the session is as if nothing had been."""
    graph = trial.graph(folder, {})
    session.prepare(graph=graph, output=folder / "after", nb_frames=AFTER, expo_time=1e-3)
    session.start()
    report = session.wait(LIMIT)
    if report.ok and not report.errors:
        return []
    return [f"the run after it: {report}"]
