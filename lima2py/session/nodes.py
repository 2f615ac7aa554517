"""The nodes of a system: started when they are needed, reached, and started again."""

from __future__ import annotations

import threading
from collections.abc import Collection

from lima2py.errors import BadCommand, LimaError, NodeError
from lima2py.node.acquisition import AcquisitionNode
from lima2py.session.launch import Child, Handle, Inside, Remote, Staying, Tended
from lima2py.session.member import SILENCE
from lima2py.session.place import NodePlace
from lima2py.session.standing import Standing
from lima2py.session.system import System
from lima2py.session.writer import Writer
from lima2py.transport.keys import Keys
from lima2py.transport.sockets import PrivateFolder, new_context


class Nodes:
    """Handles on all nodes of a system, in the order of the system file.

    Args:
        keys: that the session uses on the network.
        standing: the system, if it is up; else its nodes are started when they are needed.
        take_over: whether to take the command of a system that is up from who has it.

    Attributes:
        acquisition: the acquisition nodes, once started; the first one keeps the books.
        processing: the processing nodes.
        lock: is held while nodes are started, or made ready.
    """

    def __init__(
        self, keys: Keys | None = None, standing: Standing | None = None, take_over: bool = False
    ) -> None:
        self.acquisition: list[Handle] = []
        self.processing: list[Handle] = []
        self._parted: list[Handle] = []
        self.lock = threading.RLock()
        self._context = new_context(keys)
        self._folder: PrivateFolder | None = None
        self._standing = standing
        self._writer = Writer(lambda: [*self.acquisition, *self.processing], take_over)
        if standing is not None:
            self._system = standing.system
            for kind, places, handles in self._of_kinds():
                for rank, place in enumerate(places):
                    handles.append(standing.handle(self._context, kind, rank, place, self._writer))

    @property
    def stays(self) -> bool:
        """Whether the nodes stay when the session leaves."""
        return self._standing is not None

    @property
    def commands(self) -> bool:
        """Whether the session commands the nodes now, or only looks at them."""
        return not self.stays or self._writer.commands

    def confirm(self) -> None:
        """Make sure that the session may command the nodes.

        Raises:
            BadCommand: if another session commands them.
        """
        if self.stays:
            self._writer.confirm()

    def acquirers(self, detectors: Collection[str]) -> list[Handle]:
        """Each once: the acquisition nodes of the main detector, then those of others by name."""
        places = self._system.acquisition or (None,)
        named = [
            (place.detector if place else "", handle)
            for handle, place in zip(self.acquisition, places, strict=True)
        ]
        return [handle for name, handle in named if not name] + [
            handle for name, handle in named if name and name in detectors
        ]

    def start(self, system: System) -> None:
        """Start, or start again, what is not there.

        Args:
            system: which nodes there are; without any, one is kept in this process.

        Raises:
            NodeError: if a node does not come up, or is not where it should be.
        """
        with self.lock:
            self._start(system)

    def _start(self, system: System) -> None:
        self._system = system
        if self._standing is not None:
            self._stand(self._standing)
            return
        if not system.processing:
            if not self.acquisition:
                self.acquisition.append(Inside(AcquisitionNode("local")))
            return
        if self._folder is None:
            self._folder = PrivateFolder()
        fresh: list[Child] = []
        for kind, places, handles in self._of_kinds():
            for rank, place in enumerate(places):
                if rank < len(handles):
                    if _is_there(old := handles[rank], kind):
                        continue
                    old.close()
                    del handles[rank]
                handle = self._reach(kind, rank, place, self._folder)
                handles.insert(rank, handle)
                if isinstance(handle, Child):
                    fresh.append(handle)
        for child in fresh:
            child.wait_ready()

    def _stand(self, standing: Standing) -> None:
        """Start the nodes again that are not there, of a system that is up."""
        for kind, _, handles in self._of_kinds():
            for handle in [*handles]:
                if not _is_there(handle, kind):
                    self._stand_again(standing, kind, handle)
                self._writer.have()  # the first node grants it: once it is there

    def _stand_again(self, standing: Standing, kind: str, lost: Handle) -> Handle:
        """Start a node again that is lost, unless another session has; the handle on it."""
        handles = self.acquisition if kind == "acquisition" else self.processing
        rank = handles.index(lost)
        _, places, _ = self._of_kinds()[kind == "processing"]
        with standing.nest.locked():
            if not standing.nest.cards():  # nodes that are killed leave theirs
                raise BadCommand(
                    f"system {standing.system.system} was ended (lima2py down); start it again:"
                    f"  lima2py up {standing.system.file}"
                )
            there = standing.living().get(lost.name)
            if there is None or (isinstance(lost, Staying) and lost.card == there):
                standing.start(kind, places[rank])  # over the card of one that hangs
        fresh = standing.handle(self._context, kind, rank, places[rank], self._writer)
        handles[rank] = fresh
        lost.close()
        return fresh

    def _of_kinds(self) -> tuple[tuple[str, tuple[NodePlace, ...], list[Handle]], ...]:
        return (
            ("acquisition", self._system.acquisition, self.acquisition),
            ("processing", self._system.processing, self.processing),
        )

    def meet_again(self) -> None:
        """Find the nodes of a system that is up which others have started again."""
        if (standing := self._standing) is None:
            return
        with self.lock:
            living = standing.living()
            for kind, places, handles in self._of_kinds():
                for rank, handle in enumerate([*handles]):
                    if isinstance(handle, Staying) and not handle.running and handle.name in living:
                        self._parted.append(handle)  # older runs may still ask how it ended
                        handles[rank] = standing.handle(
                            self._context, kind, rank, places[rank], self._writer
                        )

    def bring_back(self, lost: Handle, run: str) -> Handle:
        """Start a processing node again that a run has lost.

        Args:
            lost: the handle on it; a node that somebody else started must be there again.
            run: id of the run.

        Returns:
            The handle on it from now on.

        Raises:
            LimaError: if it cannot be.
        """
        if isinstance(lost, Remote):  # before anybody has to wait for us
            _is_there(lost, "processing")
        with self.lock:
            if self.processing[lost.rank] is lost:  # if not, another run has seen to it
                if self._standing is not None and isinstance(lost, Tended):
                    self._stand_again(self._standing, "processing", lost)
                elif isinstance(lost, Child):
                    lost.close()
                    self.processing[lost.rank] = self._again(lost.rank)
                else:
                    lost.call("give_up", run=run)
            return self.processing[lost.rank]

    def close(self) -> None:
        """End the nodes that are ours; leave nothing behind. May be called twice."""
        with self.lock:
            self._writer.close()
            for handle in [*self.acquisition, *self.processing, *self._parted]:
                handle.close()
        self._context.destroy(linger=0)
        if self._folder is not None:
            self._folder.close()

    def _of_name(self, name: str) -> Handle:
        return next(handle for handle in self.processing if handle.name == name)

    def _again(self, place: int) -> Handle:
        assert self._folder is not None  # noqa: S101 - there are child nodes
        child = self._reach("processing", place, self._system.processing[place], self._folder)
        assert isinstance(child, Child)  # noqa: S101 - for the type checker
        try:
            child.wait_ready()
        except LimaError:
            child.close()
            raise
        return child

    def _reach(self, kind: str, rank: int, place: NodePlace, folder: PrivateFolder) -> Remote:
        """A handle on a node: on one that runs somewhere, or on one started here now."""
        if place.address is None:
            host = self._system.host_of(place)
            return Child(self._context, kind, place.node, rank, folder, host)
        remote = Remote(self._context, place.node, rank, place.address)
        try:
            remote.check_kind(kind)
        except LimaError:
            remote.close()
            raise
        return remote


def _is_there(handle: Handle, kind: str) -> bool:
    """Whether a node can be told something; one of ours that hangs is ended.

    Raises:
        NodeError: if one that somebody else started is not there.
    """
    if not isinstance(handle, Tended):
        if isinstance(handle, Remote):
            handle.check_kind(kind)
        return True
    try:
        handle.look("describe", timeout=SILENCE)
    except NodeError:
        handle.kill()
        return False
    return True
