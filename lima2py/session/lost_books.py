"""The report of a run whose books are lost with the node that kept them.

What is known stands in the journals of the acquisition nodes and in the files of the processing
nodes. If they can be seen from here, the masters are made from them, as `lima2py recover` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lima2py.errors import StorageError, in_words
from lima2py.frame import Absence, Fate
from lima2py.node.ledger import Ledger
from lima2py.storage.care.journal_content import JournalContent, read_journal, tracks_of
from lima2py.storage.care.recover import recover_run
from lima2py.storage.care.recovery import Recovery
from lima2py.storage.names import journals_at

_UNKNOWN = Absence(Fate.NODE_LOST, "session", "its acquisition node was lost")


def report_of(
    run: str, name: str, paths: Mapping[str, str], asked: int, acquired: int, may_write: bool
) -> dict[str, Any]:
    """What became of the run, as plain values: what `AcquisitionRun.report` would have said.

    The masters are written, so no node may write the files any more, and only one session may do
    it; others say what the journals do.

    Args:
        run: its id.
        name: what the user called it.
        paths: by sink, in the order of the graph, what its files begin with.
        asked: frames asked for; 0 if endless, or if nobody knows.
        acquired: frames that are known to exist.
        may_write: whether this session commands the nodes, and so writes the masters.
    """
    errors: list[str] = []
    journals = _journals(run, paths, errors)
    found: list[Recovery] = []
    if paths:
        prefixes = list(dict.fromkeys(map(Path, paths.values())))
        by_hand = f"lima2py recover {prefixes[0].parent}"
        try:
            found = recover_run(prefixes, run) if may_write else []
        except Exception as error:  # whatever it is, the report must come
            errors.append(f"{in_words(error)}; when that is mended, give: {by_hand}")
        else:
            if not may_write:
                errors.append(
                    "the masters are left to the session that commands the nodes; if there is none:"
                    f" {by_hand}"
                )
            elif not found:
                errors.append(
                    f"no file of the run can be seen from here; where they can: {by_hand}"
                )
    saved = {product.run.task: product for one in found for product in one.saved}
    for one in found:
        errors += [f"{one.master}: {text}" for text in (*one.problems, one.refused) if text]
    spans = {task: product.spec.span for task, product in saved.items()}
    if journals:
        ledger = Ledger(journals[0].head.sinks, journals[0].head.nb_frames)
        ledger.take(tracks_of(journals))
    else:
        ledger = Ledger(spans, asked)
    if not ledger.nb_frames:
        ends = [len(product.table.fate) * product.spec.span for product in saved.values()]
        ledger.acquired(max([acquired, *ends]))
    ledger.show({task: product.table for task, product in saved.items()})
    ledger.close(_UNKNOWN)
    masters = {product.run.task: str(one.master) for one in found for product in one.saved}
    return {
        "run": run,
        "name": name,
        "outcome": "failed",
        **ledger.plain(),
        "masters": {sink: masters[sink] for sink in ledger.sinks if sink in masters},
        "errors": errors,
        "remarks": [],
        "seconds": 0.0,
        "ring_bytes": 0,
    }


def _journals(run: str, paths: Mapping[str, str], errors: list[str]) -> list[JournalContent]:
    """What the journals of a run say; why some cannot be read goes to the errors."""
    found = []
    try:
        for path in journals_at(Path(next(iter(paths.values())))) if paths else ():
            told = read_journal(path)
            if told is not None and told.head.run == run:
                found.append(told)
    except StorageError as error:
        errors.append(str(error))
    return found
