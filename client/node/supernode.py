"""The node: our seam on the connection of Flower's SuperNode.

``python -m client.node.supernode SITE_FOLDER``. Registration, node authentication, heartbeats and the
protocol are Flower's. Its loop and its Runtime API are not started: they are there to run a ClientApp
for each message, and here a worker is resident.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization.ssh import load_ssh_private_key
from flwr.supercore.exit import register_signal_handlers
from flwr.supercore.telemetry import EventType
from flwr.supernode import fleet_http_connection

from client.join.joining import load_welcome
from client.node.fleet import FleetClient, Lock, Released, Traffic
from client.node.gates import SiteGate
from client.node.outbox import Outbox
from client.node.relay import ask_worker
from client.node.seam import Connection, Seam, Work
from client.node.standing import Standing
from client.place import SiteFolder
from client.site import load_site
from common.console import fail_clearly
from common.errors import CredentialError, FedcxrError

HOOK = (fleet_http_connection, "FleetHttpClient")
"""The name in Flower's modules that we put ours in place of; tests/client/node hold it to this version."""
_log = logging.getLogger(__name__)


def run_node(folder: SiteFolder) -> int:
    """Run until the connection ends or the process is asked to stop; returns the exit code."""
    site, welcome = load_site(folder.settings), load_welcome(folder)
    standing = Standing(folder, f"{welcome.centre} at {welcome.address}")
    gate = SiteGate(folder, site, welcome)
    traffic = Traffic(gate.record)
    released = Released()
    outbox = Outbox(folder.outbox)
    work = worker_behind(folder.worker_socket, site.name)
    setattr(*HOOK, FleetClient.behind(Lock(released, traffic, standing), standing))
    asked_to_stop = False
    try:
        # SIGTERM and SIGINT end the process through here, with Flower's word to its own retries.
        register_signal_handlers(EventType.RUN_SUPERNODE_LEAVE, "the node was told to stop")
        connect = fleet_http_connection.http_request_response
        certificate = welcome.certificate.encode()
        with connect(welcome.address, False, certificate, _node_key(folder)) as callbacks:
            inner = Connection(*callbacks)
            seam = Seam(site.name, inner, outbox, gate, standing, released, traffic, work)
            _follow(seam, standing)
    except SystemExit as ended:
        asked_to_stop = not ended.code
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            traffic.note(now=True)
        except FedcxrError as error:
            _log.error("%s", error)
    return 0 if asked_to_stop and not standing.state.problem else standing.exit_code


def worker_behind(socket: Path, site: str) -> Work:
    """Return what hands an instruction to the worker that listens on a socket."""
    return lambda instruction, settings, patience: ask_worker(
        socket, instruction, settings, site, patience=patience
    )


def main(place: str) -> int:
    """Run the node of a site's folder; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("flwr").propagate = False  # it has a handler of its own
    return run_node(SiteFolder.of(Path(place)))


def _follow(seam: Seam, standing: Standing) -> None:
    """Say what ends it: Flower's connection logs an exception and ends as if nothing were."""
    try:
        seam.follow()
    except FedcxrError as error:
        standing.fault(error)
        raise
    except Exception as error:
        standing.fault(error)
        _log.exception("the node stops")
        raise


def _node_key(folder: SiteFolder) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    try:
        key = load_ssh_private_key(folder.node_key.read_bytes(), None)
    except (OSError, ValueError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialError(
            f"{folder.node_key.name} is not this site's node key", fix="restore it, or join again"
        )
    return key, key.public_key()


if __name__ == "__main__":
    with fail_clearly():
        code = main(*sys.argv[1:])
    logging.shutdown()
    os._exit(code)  # Flower's threads are not worth waiting for
