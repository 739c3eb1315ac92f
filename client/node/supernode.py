"""The node: Flower's SuperNode loop with our seam around its connection.

``python -m client.node.supernode SITE_FOLDER PORT``: PORT is where the Runtime API listens, on
loopback, for the flower-superexec beside it; the secret both share lies in the site's folder.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization.ssh import load_ssh_private_key
from flwr.common.constant import ISOLATION_MODE_PROCESS
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli.flower_supernode import SuperNodeLifespanConfig, _start_supernode_http_api
from flwr.supernode.nodestate import NodeStateFactory

from client.app import SITE, WORKER_SOCKET
from client.join.joining import load_welcome
from client.node.fleet import FleetClient, Lock, Released, Traffic
from client.node.gates import SiteGate
from client.node.outbox import Outbox
from client.node.seam import Connection, Seam
from client.node.standing import SECRET, Standing
from client.place import SiteFolder
from client.site import load_site
from common.console import fail_clearly
from common.errors import CredentialError, FedcxrError

HOOKS = (
    (fleet_http_connection, "FleetHttpClient"),
    (start_client_internal, "http_request_response"),
)
"""Names in Flower's modules that we put ours in place of; tests/client/node hold them to this version."""
_log = logging.getLogger(__name__)


def run_node(folder: SiteFolder, port: int) -> int:
    """Run until the connection ends or the process is asked to stop; returns the exit code."""
    site, welcome = load_site(folder.settings), load_welcome(folder)
    standing = Standing(folder, f"{welcome.centre} at {welcome.address}")
    gate = SiteGate(folder, site, welcome)
    traffic = Traffic(gate.record)
    released = Released()
    outbox = Outbox(folder.outbox)
    states = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    secret = folder.outbox.with_name(SECRET).read_bytes()
    config = SuperNodeLifespanConfig(
        server_address=welcome.address,
        root_certificates=welcome.certificate.encode(),
        insecure=False,
        authentication_keys=_node_key(folder),
        max_retries=None,
        max_wait_time=None,
        node_config={WORKER_SOCKET: str(folder.worker_socket), SITE: site.name},
        isolation=ISOLATION_MODE_PROCESS,
        runtime_certificates=None,
        runtime_root_certificates_path=None,
        health_server_address=None,
        trusted_entities=None,
        superexec_auth_secret=secret,
        runtime_dependency_install=False,
        host="127.0.0.1",
        port=port,
        runtime_ssl_certfile=None,
        runtime_ssl_keyfile=None,
    )
    flowers = fleet_http_connection.http_request_response

    @contextmanager
    def connection(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        with flowers(*args, **kwargs) as callbacks:
            store = states.objectstore_factory.store()
            inner = Connection(*callbacks)
            seam = Seam(site.name, inner, store, outbox, gate, standing, released, traffic)
            yield _noted(seam, standing)

    client = FleetClient.behind(Lock(released, traffic, standing), standing)
    for (module, name), ours in zip(HOOKS, (client, connection), strict=True):
        setattr(module, name, ours)
    server, thread = _start_supernode_http_api(config, states)
    asked_to_stop = False
    try:
        start_client_internal.start_client_internal(
            state_factory=states,
            server_address=config.server_address,
            root_certificates=config.root_certificates,
            insecure=config.insecure,
            authentication_keys=config.authentication_keys,
            node_config=config.node_config,
            isolation=config.isolation,
            runtime_api_address=f"{config.host}:{config.port}",
            superexec_auth_secret=secret,
            runtime_dependency_install=False,
        )
    except SystemExit as ended:
        asked_to_stop = not ended.code
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.should_exit = True
        thread.join(timeout=2)
        try:
            traffic.note(now=True)
        except FedcxrError as error:
            _log.error("%s", error)
    return 0 if asked_to_stop and not standing.state.problem else standing.exit_code


def main(place: str, port: str) -> int:
    """Run the node of a site's folder; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("flwr").propagate = False  # it has a handler of its own
    return run_node(SiteFolder.of(Path(place)), int(port))


def _noted(seam: Seam, standing: Standing) -> tuple[Any, ...]:
    """Say what ends the loop: Flower logs an exception there and returns as if nothing were."""
    node_id, receive, *others = seam.callbacks()

    def noted_receive() -> Any:
        try:
            return receive()
        except FedcxrError as error:
            standing.fault(error)
            raise
        except Exception as error:
            standing.fault(error)
            _log.exception("the node stops")
            raise

    return (node_id, noted_receive, *others)


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
