"""The books of an acquisition run: ledger, journal, previews, and in the end the masters.

The node of rank 0 keeps them for all: it takes the accounts of the other acquisition nodes, of a
lost one its journal, and writes the masters.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from lima2py.detector import Share
from lima2py.errors import StorageError
from lima2py.frame import Absence, Block, Fate
from lima2py.graph.plan import Plan
from lima2py.node.latency import SinkLatency
from lima2py.node.ledger import Ledger
from lima2py.node.life import Outcome, worst
from lima2py.node.node import Node
from lima2py.node.observe import Observer
from lima2py.node.orders import AcquisitionOrder
from lima2py.storage.care.journal_content import read_journal, tracks_of
from lima2py.storage.masters.master import Ending
from lima2py.storage.masters.of_run import Previews, left_behind, write_masters
from lima2py.storage.names import journal_path
from lima2py.storage.saving.journal import Journal, JournalLine, begin_journal
from lima2py.task import RunContext
from lima2py.transport import wire
from lima2py.transport.in_flight import Settled
from lima2py.transport.outlet import Outlet
from lima2py.transport.sockets import connect, new_socket

OUR_FAULT = (
    Fate.NODE_LOST,
    Fate.POISON,
    Fate.DEADLINE,
    Fate.TASK_FAILED,
    Fate.NOT_SAVED,
    Fate.OVERRUN,
)
"""Fates that make a run `failed`: the detector delivered the frame, and we lost it."""
ACCOUNT_PATIENCE = 60.0
"""Seconds in which the other acquisition nodes must have given their accounts."""
LEAVE_PATIENCE = 1.0
"""The same when this node is told to end: they may have been told, too, or go on."""


class Books:
    """What becomes of every frame of one acquisition node; of all of them, for that of rank 0.

    Args:
        order: for the run.
        plan: of the graph.
        share: which frames are ours.
        nb_frames: frames asked for; 0 if endless.
        node: that acquires.
        observer: has the logbook.
        errors: of the run, in words; added to.

    Attributes:
        ledger: the fates.
        latency: how long it took until frames were settled.
        whole: whether the ledger has the frames of all acquisition nodes.
        masters: by sink, the path of the master that was written.
        paths: by sink, what its files begin with.
        files: the files of every processing node, by rank and sink.
        lead: where the node of rank 0 takes accounts; None if this is that.
        lost_sources: ranks of other acquisition nodes that are dead. From any thread.
        leaving: whether this node is about to end. From any thread.
        remarks: what the user should know, though nothing went wrong.
    """

    def __init__(
        self,
        order: AcquisitionOrder,
        plan: Plan,
        share: Share,
        nb_frames: int,
        node: Node,
        observer: Observer,
        errors: list[str],
    ):
        # The lead keeps the books of those who follow.
        self.ledger = Ledger({}, 0) if order.follows else Ledger(plan.sink_spans, nb_frames)
        self.latency = SinkLatency(plan.sink_spans)
        self.whole = share.size == 1 and not order.follows
        self.masters: dict[str, str] = {}
        self.paths: dict[str, str] = {}
        self.files: dict[int, dict[str, list[str]]] = {}
        self.lead: str | None = None
        self.remarks: list[str] = []
        self.lost_sources: set[int] = set()
        self.leaving = False
        self._order = order
        self._plan = plan
        self._share = share
        self._node = node
        self._observer = observer
        self._errors = errors
        self._journal: Journal | None = None
        self._previews: Previews | None = None
        self._began = 0.0

    def open(self) -> None:
        """The run begins."""
        order = self._order
        if order.rank == 0:
            self._previews = Previews(self._plan.sinks, self.paths, self._observer.logbook.series)
        if order.follows:
            return
        self._journal = begin_journal(
            order.run, order.name, self.ledger.nb_frames, self._share, self._plan.sinks,
            self.paths, self._plan.sink_spans, self._errors.append,
        )  # fmt: skip
        self._began = time.time()

    def acquired(self, block: Block) -> None:
        """A block is in the ring."""
        self.ledger.acquired(block.end)
        if not self._order.follows:
            self.latency.begin(block)

    def settle(self, settled: Iterable[Settled]) -> None:
        """Write down what became of blocks; and look after the previews now and then."""
        if self._order.follows:
            return
        for _, node, sent, done in settled:
            self.ledger.settle(done, node, sent)
            if self._journal is not None:
                line = JournalLine(
                    done.index, done.count, node, sent, done.rows, done.absences, done.nodes
                )
                self._journal.note(line)
            self.latency.end(done)
        if self._previews is not None:
            self._previews.refresh()

    @property
    def we_lost_frames(self) -> bool:
        """Whether a frame that the detector delivered has not been saved, by a fault of ours."""
        counts = self.ledger.counts()
        return any(counts.get(fate.word) for fate in OUR_FAULT)

    def settle_rest(self, said: Absence) -> None:
        """No more will be settled: what has no fate yet has this one."""
        if self._order.follows:
            return
        if self._previews is not None:
            self._previews.finish()
        self.ledger.close(said, self._share)
        if self._journal is not None:
            self._journal.close(said, self.ledger.end)

    def finish(
        self, outcome: Outcome, said: Absence, outlet: Outlet, context: RunContext
    ) -> Outcome:
        """Give our account to the node that keeps the books; or if that is us, close them.

        Args:
            outcome: of our part.
            said: what became of frames that nobody knows of.
            outlet: has the accounts, and the last words of nodes.
            context: of the run.

        Returns:
            How the run ended.
        """
        if self.lead is not None:
            self._send_account(outcome)
            return outcome
        accounts = self._gather_accounts(outlet)
        known = self.lost_sources.union(account.source for account in accounts)
        if self.leaving and self._share.size > 1 and not known >= self._others:
            return outcome  # the others go on: from the journals somebody makes the masters then
        if self._share.size > 1:
            self._read_journals({0, *(account.source for account in accounts)})
        self.whole = True
        for account in accounts:
            if account.ledger:
                self.ledger.merge(account.ledger)
            self._observer.logbook.merge(account.logs)
            self._errors += [text for text in account.errors if text not in self._errors]
            outcome = worst([outcome, Outcome(account.outcome)])
        for rank in (0, *(account.source for account in accounts)):
            # Endless runs end at another frame on each node.
            self.ledger.close(said, self._share._replace(rank=rank))
        if self._share.size > 1:
            self.ledger.close(Absence(Fate.NODE_LOST, "ledger", "its acquisition node was lost"))
            failed = self.we_lost_frames
        else:  # a frame may be incomplete by fault of the detector, too
            missing = outlet.broken or len(accounts) < len(self._others)
            failed = missing and self.ledger.counts().get(Fate.INCOMPLETE.word, 0) > 0
        if failed and outcome is not Outcome.ABORTED:
            outcome = Outcome.FAILED
        for rank, closed in outlet.closed.items():
            self.files.update({**closed.behind, rank: closed.files})
        outcome = self._write_masters(outcome, context)
        if outlet.lost:
            self.remarks += filter(None, [left_behind(self._plan.sinks, self.paths)])
        return outcome

    def close(self) -> None:
        """Let go of the journal; may be called twice."""
        if self._journal is not None:
            self._journal.close()

    def plain(self) -> dict[str, Any]:
        """What became of the frames, as plain values."""
        return {**self.ledger.plain(), "masters": dict(self.masters)}

    def _send_account(self, outcome: Outcome) -> None:
        assert self.lead is not None  # noqa: S101 - for the type checker
        socket = new_socket(self._node.context, zmq.PUSH, hwm=0)
        try:
            connect(socket, self.lead)
            order, logs = self._order, self._observer.close()
            ledger = b"" if order.follows else self.ledger.pack()
            account = wire.Account(order.run, order.rank, ledger, outcome.value, self._errors, logs)
            socket.send(wire.encode(account))
        finally:
            socket.close(linger=10_000)

    def _gather_accounts(self, outlet: Outlet) -> list[wire.Account]:
        if self._order.size == 1:
            return []
        began = time.monotonic()
        while missing := self._others - set(outlet.accounts) - self.lost_sources:
            if time.monotonic() > began + (LEAVE_PATIENCE if self.leaving else ACCOUNT_PATIENCE):
                self._errors.append(
                    f"{self._node.who}: no account from acquisition nodes {sorted(missing)}"
                )
                break
            outlet.listen()
        return [outlet.accounts[rank] for rank in sorted(self._others & set(outlet.accounts))]

    @property
    def _others(self) -> set[int]:
        return set(range(1, self._order.size))

    def _read_journals(self, accounted: Collection[int]) -> None:
        """What became of the frames of acquisition nodes that are lost, as far as they noted it."""
        for rank in set(range(self._order.size if self.paths else 0)).difference(accounted):
            path = Path(journal_path(next(iter(self.paths.values())), rank))
            try:
                told = read_journal(path)
            except StorageError as error:
                self._errors.append(f"{self._node.who}: {error}")
                continue
            if told is not None and told.head.run == self._order.run:
                self.ledger.take(tracks_of([told]))

    def _write_masters(self, outcome: Outcome, context: RunContext) -> Outcome:
        self.masters, shown, problems = write_masters(
            self._plan.sinks,
            replace(context, started=self._began),
            {name: self.ledger.table(name) for name in self._plan.sinks},
            self.files,
            Ending(outcome.value, self._errors, self._observer.close(), ended=time.time()),
        )
        if self.ledger.counts().get(Fate.NODE_LOST.word):
            self.ledger.show(shown)
        if problems:
            self._errors += [f"{self._node.who}: {text}" for text in problems]
            outcome = worst([outcome, Outcome.FAILED])
        return outcome
