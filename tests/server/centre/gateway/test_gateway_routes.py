"""Every route of Flower's own table, with every credential that is not enough, on both listeners."""

from __future__ import annotations

import base64
import datetime
import socket
import warnings

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from server.centre.links import COLUMNS
from server.centre.superlink import flower_app

pytestmark = pytest.mark.e2e

SITE_MAY = {
    "/v1/fleet/activate-node": 200,
    "/v1/fleet/send-node-heartbeat": 200,
    "/v1/fleet/pull-messages": 200,
    "/v1/fleet/push-messages": 400,  # an empty request is no answer
    "/v1/fleet/get-run": 403,  # nothing was asked of it
    "/v1/fleet/get-fab": 403,
    "/v1/fleet/push-object": 403,
    "/v1/fleet/pull-object": 400,
    "/v1/fleet/confirm-message-received": 400,
    "/v1/fleet/deactivate-node": 200,
}
"""What an admitted site gets for an empty request of its own, in an order that works."""


@pytest.fixture(scope="module")
def flower(make_centre):
    """Flower's app as the centre makes it, not served."""
    folder = make_centre()
    with warnings.catch_warnings():
        # Flower's migrations use an older form of Alembic's settings.
        warnings.simplefilter("ignore", DeprecationWarning)
        return flower_app(folder, b"secret")


@pytest.fixture(scope="module")
def table(flower) -> list[tuple[str, str]]:
    """Every method and path that Flower's app has a route for."""
    found = set()
    for context in iter_route_contexts(flower.routes):
        found |= {(method, context.path) for method in context.methods or ()}
    return sorted(found)


@pytest.fixture(scope="module")
def clients(centre):
    with httpx.Client(verify=centre.tls(), timeout=30) as client:
        yield client


def _call(client, face, method, path, headers, message=None):
    if message is None and (method, path) in PROTOBUF_REQUEST_TYPES:
        message = PROTOBUF_REQUEST_TYPES[(method, path)]()
    body = b"" if message is None else message.SerializeToString()
    sent = {"content-type": "application/protobuf"} | headers
    return client.request(method, f"https://{face}{path}", content=body, headers=sent)


def _stranger() -> dict[str, str]:
    """Well-made headers of a key that nobody admitted."""
    private, public = generate_key_pairs()
    stamp = datetime.datetime.now(datetime.UTC).isoformat()
    return {
        "flwr-public-key": base64.b64encode(public_key_to_bytes(public)).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(sign_message(private, stamp.encode())).decode(),
    }


def test_the_table_is_flowers_whole_one(flower, table):
    """The routes that this file goes through are those that Flower serves and parses."""
    assert set(PROTOBUF_REQUEST_TYPES) <= set(table)
    assert len(table) > 80
    assert {path for _, path in table if path.startswith("/v1/fleet/")} > set(SITE_MAY)
    plain = {route.path for route in flower.routes if hasattr(route, "path")}
    assert plain - {path for _, path in table} == set()


def test_without_a_credential_only_health_answers(centre, clients, table):
    for face in (centre.public, centre.admin):
        for method, path in table:
            response = _call(clients, face, method, path, {})
            if path == "/health":
                assert (response.status_code, response.text) == (200, "" if method == "HEAD" else "ok")
            else:
                assert response.status_code in (401, 404), (face, method, path)
                assert set(response.json()) == {"detail"} if method != "HEAD" else True


@pytest.mark.parametrize("kind", ["stranger", "token", "forged"])
def test_a_wrong_credential_is_as_good_as_none_in_public(centre, clients, table, kind):
    north = centre.admit(f"routes-{kind}")
    for method, path in table:
        if path == "/health":
            continue
        forged = {**north.headers(), "flwr-signature": _stranger()["flwr-signature"]}
        headers = {
            "stranger": _stranger(),
            "token": {"authorization": f"Bearer {centre.token}"},
            "forged": forged,
        }[kind]
        response = _call(clients, centre.public, method, path, headers)
        assert response.status_code == (401 if path in SITE_MAY else 404), (method, path)


def test_a_sites_key_opens_what_a_site_needs_and_no_more(centre, clients, table):
    north = centre.admit("routes-north")
    order = sorted(table, key=lambda route: list(SITE_MAY).index(route[1]) if route[1] in SITE_MAY else -1)
    for method, path in order:
        if path == "/health":
            continue
        kind = PROTOBUF_REQUEST_TYPES.get((method, path))
        message = kind() if kind else None
        if message is not None and "node" in message.DESCRIPTOR.fields_by_name:
            message.node.node_id = north.node_id
        elif message is not None and "node_id" in message.DESCRIPTOR.fields_by_name:
            message.node_id = north.node_id
        if path.endswith("/activate-node"):
            message.public_key, message.heartbeat_interval = north.key, 30
        if path.endswith("/send-node-heartbeat"):
            message.heartbeat_interval = 30
        response = _call(clients, centre.public, method, path, north.headers(), message)
        assert response.status_code == SITE_MAY.get(path, 404), (method, path)


@pytest.mark.parametrize("kind", ["wrong", "site", "task", "superexec"])
def test_the_admin_listener_wants_its_own_credentials(centre, clients, table, kind):
    north = centre.admit(f"routes-admin-{kind}")
    for method, path in table:
        if path == "/health":
            continue
        headers = {
            "wrong": {"authorization": f"Bearer {centre.token[:-1]}x"},
            "site": north.headers(),
            "task": {"flwr-task-token": "not-a-task"},
            "superexec": {
                "flwr-superexec-ts": "1",
                "flwr-superexec-nonce": "1",
                "flwr-superexec-body-sha256": "ab",
                "flwr-superexec-signature": "ab",
            },
        }[kind]
        response = _call(clients, centre.admin, method, path, headers)
        assert response.status_code in (401, 404), (method, path)
        if path.startswith("/v1/fleet/"):
            assert response.status_code == 404, (method, path)


def test_the_admin_token_opens_control(centre, clients, table):
    headers = {"authorization": f"Bearer {centre.token}"}
    controls = [(method, path) for method, path in table if path.startswith("/v1/control/list-")]
    assert controls
    for method, path in controls:
        response = _call(clients, centre.admin, method, path, headers)
        # 404 is Flower's own for a series that is not there, and in its own words.
        assert response.status_code == 200 or "code" in response.json(), path
    assert _call(clients, centre.admin, "POST", "/v1/control/list-runs", headers).status_code == 200
    assert clients.get(f"https://{centre.admin}/openapi.json", headers=headers).status_code == 200
    # The token is for Control: it opens neither a task's routes nor a site's.
    for path in ("/v1/runtime/get-nodes", "/v1/runtime/acquire-task", "/v1/runtime/responses"):
        assert _call(clients, centre.admin, "POST", path, headers).status_code in (401, 404)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/fleet/../control/list-runs",
        "//v1/control/list-runs",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/V1/CONTROL/LIST-RUNS",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/control/list-runs?/v1/fleet/pull-messages",
        "https://127.0.0.1/v1/control/list-runs",
    ],
)
def test_a_crooked_path_is_no_route(centre, target):
    """A site's valid headers on a path that another reader could take for something else."""
    north = centre.admit(f"crooked-{abs(hash(target)) % 10**9}")
    head = [f"POST {target} HTTP/1.1", "host: x", "content-length: 0"]
    head += ["content-type: application/protobuf", *(f"{k}: {v}" for k, v in north.headers().items())]
    with centre.connect() as connection:
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n")
        assert connection.recv(4096).split()[1] in (b"404", b"400")


@pytest.mark.parametrize(
    "change",
    [
        {"content-length": "5", "Content-Length": "6"},
        {"content-length": "-1"},
        {"content-length": "1e3"},
        {"content-type": "application/json", "content-length": "0"},
    ],
)
def test_a_malformed_head_is_refused(centre, change):
    north = centre.admit(f"head-{abs(hash(str(change))) % 10**9}")
    fields = north.headers() | {"host": "x", "content-type": "application/protobuf"} | change
    lines = ["POST /v1/fleet/pull-messages HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
    with centre.connect() as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        assert connection.recv(4096).split()[1] in (b"400", b"415")


def test_doubled_credentials_are_none(centre):
    """Two keys in one head: whoever reads the first and whoever reads the last would not agree."""
    north, south = centre.admit("double-north"), centre.admit("double-south")
    fields = [*north.headers().items(), *south.headers().items(), ("host", "x"), ("content-length", "0")]
    lines = ["POST /v1/fleet/pull-messages HTTP/1.1", *(f"{k}: {v}" for k, v in fields)]
    with centre.connect() as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        assert connection.recv(4096).split()[1] == b"401"


def test_a_refusal_ends_the_connection(centre):
    with centre.connect() as connection:
        connection.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer.lower()


def test_plain_http_is_not_spoken(centre):
    host, port = centre.public.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        try:
            said = connection.recv(4096)
        except ConnectionError:
            said = b""
    assert b"200" not in said


def test_flowers_tables_have_the_columns_that_we_read(flower):
    links = flower.state.linkstate_factory.state()
    for name, columns in COLUMNS.items():
        found = {row["name"] for row in links.query(f"PRAGMA table_info({name})")}
        assert set(columns) <= found, name
