"""Throw bad messages at everything that reads messages, as many as can be in some time.

    python -m tests.fuzz [SECONDS]     prints tries and findings; status 1 if there are any

A try takes a message that could be, or one that nearly could, changes it at random, and gives it to
the code that reads it, with a checksum that fits or without. It may be refused, or taken for
another message, which then has to be sound. Anything else is a finding: another error, a sound
message refused, or a try that takes too long.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from lima2py.errors import ProtocolError
from lima2py.frame import SIZES, Absence, Block, Fate, FrameSpec
from lima2py.node.ledger import Ledger
from lima2py.transport import packing, rpc, wire

DENSE = FrameSpec.dense(4, 6, "uint16")
ENCODED = FrameSpec.encoded(DENSE, "bslz4", 48)
ROOM = 16
SPANS = {"raw": 1, "sums": 4}
SLOW = 1.0
"""Seconds that no try may take."""
NUMBERS = (0, 1, 2, 3, 15, 16, 17, 127, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**62,
           2**63 - 1, 2**63, 2**64 - 1, -1, -2, -2**31, -2**63)  # fmt: skip
WORDS = ("", "run", "|O", "O", "<f8", ">u2", "|u1", "<u8", "<f2", "f8,f8", "(2,3)f4", "U4", "S8",
         "M8[s]", "<c16", "2f8", "V0", "\0", "timestamp", SIZES)  # fmt: skip


class Fuzz:
    """Tries, and what came of them.

    Args:
        seed: of the random numbers: equal seeds make equal tries.

    Attributes:
        outcomes: how many tries ended how.
        findings: what should not have been, in words.
    """

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)
        self.outcomes: Counter[str] = Counter()
        self.findings: list[str] = []
        self._pixels = bytes(range(96)) * 8

    def go(self, tries: int) -> None:
        """Make some tries."""
        kinds: tuple[Callable[[], str], ...] = (
            self._frames, self._frames, self._answer, self._request
        )  # fmt: skip
        for _ in range(tries):
            kind = kinds[self._random.integers(len(kinds))]
            began = time.monotonic()
            try:
                self.outcomes[kind()] += 1
            except ProtocolError as error:
                self.outcomes[f"refused: {error.reason}"] += 1
            except Exception:
                self.outcomes["finding"] += 1
                self.findings.append(traceback.format_exc())
            if time.monotonic() - began > SLOW:
                self.findings.append(f"{kind.__name__} took {time.monotonic() - began:.1f} s")

    # What is tried

    def _frames(self) -> str:
        """A block, at a processing node."""
        spec = (DENSE, ENCODED)[self._random.integers(2)]
        count = int(self._random.integers(1, 6))
        absences = {0: Absence(Fate.CORRUPT, "x", "y")} if self._chance(0.3) else {}
        sizes = self._random.integers(0, 49, count).astype(np.uint64)
        columns = {"timestamp": self._random.random(count), SIZES: sizes}
        data: Any = np.zeros((count, *spec.shape), spec.dtype)
        block = Block(spec, 3 * count, count, data, absences, columns)
        plain = msgspec.to_builtins(
            wire.BlockMessage(
                "run", 0, 0, block.index, count, -1,
                packing.pack_absences(absences), packing.pack_columns(columns),
            ),
            builtin_types=(bytes,),
        )  # fmt: skip
        message = wire.decode(self._damaged(plain))
        if not isinstance(message, wire.BlockMessage):
            return "another kind"
        content = (None, data, bytes(packing.content_of(block)), self._some_bytes())[
            self._random.integers(4)
        ]
        made = packing.block_of(message, spec, ROOM, content)
        check(1 <= made.count <= ROOM and made.index >= 0, "count")
        check(all(len(values) == made.count for values in made.columns.values()), "columns")
        check(made.data is None or made.pixels.shape == (made.count, *spec.shape), "data")
        check(made.data is not None or not made.present.any(), "absent")
        check(len(list(made.frames())) == made.count, "frames")
        check(made.index + made.count < 2**63, "index")
        return "block"

    def _answer(self) -> str:
        """What became of a block, at an acquisition node."""
        count, index = int(self._random.integers(1, 9)), int(self._random.integers(0, 30))
        absences = [(1, (0, 1, int(Fate.NOT_SAVED), "raw", "full"))] if self._chance(0.5) else []
        done = wire.DoneBlock(index, count, 0, 2, [7, 1], absences)
        plain = msgspec.to_builtins(wire.Done("run", 1, "inc", [done]))
        message = wire.decode(self._damaged(plain))
        if not isinstance(message, wire.Done):
            return "another kind"
        for told in message.blocks:
            if told.index != index:
                continue  # of no block in flight
            packing.check_done(told, index, count, list(SPANS.values()))
            ledger = Ledger(SPANS, 64)
            ledger.settle(told, 1, 1)
            check(sum(ledger.counts().values()) == count, "ledger")
        return "done"

    def _request(self) -> str:
        """A command, at any node."""
        plain = [5, "status", {"run": "f" * 32, "after": 3, "order": {"paths": ["a", b"b", None]}}]
        request = rpc.request_of([self._damaged(plain)])
        check(isinstance(request.parameters, dict), "parameters")
        return "request"

    # How it is damaged

    def _damaged(self, plain: Any) -> bytes:
        if self._chance(0.5):
            plain = self._other(plain)
        content = msgspec.msgpack.encode(plain)
        if self._chance(0.6):
            content = self._mutated(content)
        sent = wire.seal(content)
        return self._mutated(sent) if self._chance(0.1) else sent

    def _other(self, plain: Any) -> Any:
        """The same with something else at one place of its tree."""
        if self._chance(0.2):
            return self._anything()
        if isinstance(plain, dict) and plain:
            key = list(plain)[self._random.integers(len(plain))]
            if self._chance(0.05):
                return {name: value for name, value in plain.items() if name != key}
            return {**plain, key: self._other(plain[key])}
        if isinstance(plain, (list, tuple)) and plain:
            at = int(self._random.integers(len(plain)))
            if self._chance(0.1):
                return [*plain, *plain]
            return [*plain[:at], self._other(plain[at]), *plain[at + 1 :]]
        return self._anything()

    def _anything(self) -> Any:
        pick = self._random.integers(9)
        if pick < 4:
            return NUMBERS[self._random.integers(len(NUMBERS))]
        if pick < 6:
            return WORDS[self._random.integers(len(WORDS))]
        return (float("nan"), self._some_bytes(), [], {}, None, True)[self._random.integers(6)]

    def _some_bytes(self) -> bytes:
        return self._pixels[: int(self._random.integers(len(self._pixels)))]

    def _mutated(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(self._random.integers(1, 4)):
            first, end = sorted(self._random.integers(0, len(changed) + 1, 2).tolist())
            pick = self._random.integers(6)
            if pick < 3 and first < len(changed):
                changed[first] = self._random.integers(256)
            elif pick == 3:
                del changed[first : min(end, first + 8)]
            elif pick == 4:
                changed[first:first] = changed[first:end]
            else:
                changed[first : first + 4] = self._random.bytes(4)
        return bytes(changed)

    def _chance(self, share: float) -> bool:
        return bool(self._random.random() < share)


def check(holds: bool, what: str) -> None:
    """Complain about a message that was taken and is not sound."""
    if not holds:
        raise AssertionError(what)


def main(seconds: float) -> int:
    """Try for some time; the exit status."""
    fuzz = Fuzz(int(time.time()))
    end = time.monotonic() + seconds
    while time.monotonic() < end and not fuzz.findings:
        fuzz.go(1000)
    for outcome, times in sorted(fuzz.outcomes.items()):
        print(f"{times:10}  {outcome}")
    print(f"{fuzz.outcomes.total():10}  tries, {len(fuzz.findings)} findings")
    print(*fuzz.findings, sep="\n")
    return 1 if fuzz.findings else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 120))
