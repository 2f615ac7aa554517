"""What became of a run: the report a user reads, and a program too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lima2py.frame import Fate

_SHOWN = 8


@dataclass(frozen=True)
class Report:
    """What became of a run. `asked == saved + rejected + sum(absent.values())` always holds.

    Attributes:
        run: id of the run.
        name: what the user called it.
        outcome: completed, stopped, aborted or failed.
        asked: frames asked for; those acquired, if endless.
        saved: frames that went through the graph and that every sink on their way holds.
        rejected: frames a task said no to.
        absent: the others, by cause.
        absences: first index, how many, cause, who, detail; at most a thousand ranges.
        sinks: for every sink, frames by fate.
        masters: for every sink, the path of its master file.
        errors: what went wrong, in words.
        remarks: what else one should know, though nothing went wrong.
        seconds: from start to the last file closed.
        ring: bytes of the rings of all acquisition nodes.
        memory: by node, the most private memory seen, in bytes.
        holdings: by node and holder (`process`, `shelf` of taps and small products, `ring`), in
            bytes: `asked`, `granted` if its host has a budget, `used` at last, and the `peak`.
        latency: by sink and tap, the seconds from the moment a frame was complete in the ring until
            it was safe there, or shown: `p50` and `p99` (of 50 and 99 in a hundred frames, at most
            a third too long), and `max`.
    """

    run: str
    name: str
    outcome: str
    asked: int
    saved: int
    rejected: int
    absent: dict[str, int]
    absences: list[tuple[int, int, str, str, str]] = field(default_factory=list)
    sinks: dict[str, dict[str, int]] = field(default_factory=dict)
    masters: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0
    ring: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    holdings: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    latency: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        told: dict[str, Any],
        memory: dict[str, int],
        holdings: dict[str, dict[str, dict[str, int]]],
        latency: dict[str, dict[str, float]],
        more: list[str],
    ) -> Report:
        """From what the acquisition node that keeps the books reported, and what was seen."""
        counts = dict(told["counts"])
        saved = counts.pop(Fate.SAVED.word, 0)
        rejected = counts.pop(Fate.REJECTED.word, 0)
        return cls(
            run=told["run"],
            name=told["name"],
            outcome=told["outcome"],
            asked=told["asked"],
            saved=saved,
            rejected=rejected,
            absent=counts,
            absences=[
                (first, count, Fate(cause).word, who, detail)
                for first, count, cause, who, detail in told["absences"]
            ],
            sinks=told["sinks"],
            masters=told["masters"],
            errors=_once([*told["errors"], *more]),
            remarks=told["remarks"],
            seconds=told["seconds"],
            ring=told["ring_bytes"],
            memory=memory,
            holdings=holdings,
            latency=latency,
        )

    @property
    def ok(self) -> bool:
        """Whether the run completed."""
        return self.outcome == "completed"

    def plain(self) -> dict[str, Any]:
        """The report as one JSON object."""
        names = ("outcome", "asked", "saved", "rejected", "absent", "masters", "errors", "seconds",
                 "run", "name", "sinks", "absences", "remarks", "ring", "memory",
                 "holdings", "latency")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.outcome} in {self.seconds:.2f} s ({self.run[:8]})"]
        parts = [f"saved {self.saved}"]
        if self.rejected:
            parts.append(f"rejected {self.rejected}")
        if missing := sum(self.absent.values()):
            parts.append(f"absent {missing} ({self._causes()})")
        lines.append(f"  asked {self.asked}: {', '.join(parts)}")
        lines += [f"  {sink}: {path}" for sink, path in self.masters.items()]
        if not self.masters:
            lines.append(
                "  the graph has no sink: nothing was written"
                if self.outcome != "failed"
                else "  no master file was written; lima2py recover writes it, of what nodes saved"
            )
        lines += ["  error: " + text.replace("\n", "\n    ") for text in self.errors]
        lines += [f"  note: {text}" for text in self.remarks]
        return "\n".join(lines)

    def _causes(self) -> str:
        texts = []
        for cause, number in self.absent.items():
            ranges = _joined((first, n) for first, n, word, *_ in self.absences if word == cause)
            shown = ", ".join(
                str(first) if count == 1 else f"{first}-{first + count - 1}"
                for first, count in ranges[:_SHOWN]
            )
            more = ", …" if len(ranges) > _SHOWN else ""
            texts.append(f"{cause} {number}: {shown}{more}" if shown else f"{cause} {number}")
        return "; ".join(texts)


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges `(first, how many)`, those that touch made one."""
    joined: list[tuple[int, int]] = []
    for first, count in ranges:
        if joined and sum(joined[-1]) == first:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((first, count))
    return joined


def _once(texts: list[str]) -> list[str]:
    """Every text but those that another one contains."""
    texts = list(dict.fromkeys(texts))
    return [text for text in texts if not any(text in other for other in texts if other != text)]
