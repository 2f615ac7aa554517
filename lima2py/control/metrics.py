"""Serve the metrics of a session to Prometheus, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lima2py.errors import BadParameter
from lima2py.session.metrics import collector
from lima2py.session.session import Session


def address_of(text: str) -> tuple[str, int]:
    """Where to listen: `127.0.0.1:9464`, or `9464` or `:9464` for this host only.

    Raises:
        BadParameter: if it is neither.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise BadParameter(
            f"--metrics {text}: should be ADDRESS:PORT, for instance 127.0.0.1:9464; port 0 picks a"
            " free one"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


@contextmanager
def serving(session: Session, address: str) -> Iterator[str]:
    """Serve the metrics of a session meanwhile.

    Args:
        session: whose.
        address: where to listen, see `address_of`.

    Returns:
        The URL to give to Prometheus.

    Raises:
        BadParameter: if one cannot listen there.
        LimaError: if the Prometheus client is not installed.
    """
    host, port = address_of(address)
    collected = collector(session.view)
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collected)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise BadParameter(
            f"--metrics {address}: nobody can listen there: {error.strerror or error}; choose"
            " another port, or 0 for a free one"
        ) from None
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
