"""Names inside Flower that the node leans on: a new version that changes them is noticed here."""

from __future__ import annotations

import inspect

import flwr
from flwr.supercore.exit import register_signal_handlers
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.node.fleet import OPEN
from client.node.supernode import HOOK


def parameters(what: object) -> list[str]:
    return list(inspect.signature(what).parameters)  # type: ignore[arg-type]


def test_the_version_is_the_one_this_was_written_for() -> None:
    assert flwr.__version__ == "1.41.0"


def test_the_connection_takes_its_client_from_a_name_that_can_be_replaced() -> None:
    source = inspect.getsource(fleet_http_connection.http_request_response)
    assert "FleetHttpClient.from_server_address(" in source
    module, name = HOOK
    assert getattr(module, name) is FleetHttpClient


def test_the_connection_takes_what_the_node_gives_and_yields_what_the_seam_wraps() -> None:
    connect = fleet_http_connection.http_request_response
    assert parameters(connect)[:4] == [
        "server_address", "insecure", "root_certificates", "authentication_keys",
    ]  # fmt: skip
    yielded = inspect.getsource(connect).partition("yield (")[2]
    assert [name.strip() for name in yielded.partition(")")[0].split(",")][:8] == [
        "node.node_id", "receive", "send", "get_run", "get_fab", "pull_object", "push_object",
        "confirm_message_received",
    ]  # fmt: skip
    assert parameters(register_signal_handlers)[:2] == ["event_type", "exit_message"]


def test_every_route_is_open_or_closed_on_purpose() -> None:
    routes = {name for name in vars(FleetHttpClient) if name[0].isupper()}
    assert routes - OPEN == {"RegisterNode", "UnregisterNode"}
    assert routes >= OPEN


def test_the_client_sends_through_its_interceptors() -> None:
    source = inspect.getsource(FleetHttpClient.__mro__[1])
    assert "reversed(self._interceptors)" in source and "follow_redirects=True" in source
