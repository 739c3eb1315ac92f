"""Names inside Flower that the node leans on: a new version that changes them is noticed here."""

from __future__ import annotations

import inspect

import flwr
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli import flower_supernode  # noqa: F401  (a function of the package's)
from flwr.supernode.cli.flower_supernode import SuperNodeLifespanConfig, _start_supernode_http_api
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.node.fleet import OPEN


def parameters(what: object) -> list[str]:
    return list(inspect.signature(what).parameters)  # type: ignore[arg-type]


def test_the_version_is_the_one_this_was_written_for() -> None:
    assert flwr.__version__ == "1.41.0"


def test_the_loop_takes_its_connection_from_a_name_that_can_be_replaced() -> None:
    source = inspect.getsource(start_client_internal._init_connection)
    assert "with http_request_response(" in source
    assert start_client_internal.http_request_response is fleet_http_connection.http_request_response
    source = inspect.getsource(fleet_http_connection.http_request_response)
    assert "FleetHttpClient.from_server_address(" in source
    assert fleet_http_connection.FleetHttpClient is FleetHttpClient


def test_the_callbacks_are_those_the_seam_wraps() -> None:
    assert parameters(start_client_internal._pull_and_store_message) == [
        "state", "object_store", "node_config", "receive", "get_run", "get_fab", "pull_object",
        "confirm_message_received", "trusted_entities",
    ]  # fmt: skip
    assert parameters(start_client_internal._push_messages) == [
        "state",
        "object_store",
        "send",
        "push_object",
    ]
    yielded = inspect.getsource(fleet_http_connection.http_request_response).partition("yield (")[2]
    assert [name.strip() for name in yielded.partition(")")[0].split(",")][:8] == [
        "node.node_id", "receive", "send", "get_run", "get_fab", "pull_object", "push_object",
        "confirm_message_received",
    ]  # fmt: skip


def test_the_start_takes_what_the_node_gives() -> None:
    assert {
        "state_factory", "server_address", "node_config", "root_certificates", "insecure",
        "authentication_keys", "isolation", "runtime_api_address", "superexec_auth_secret",
        "runtime_dependency_install",
    } <= set(parameters(start_client_internal.start_client_internal))  # fmt: skip
    assert parameters(_start_supernode_http_api) == ["config", "state_factory"]
    assert len(parameters(SuperNodeLifespanConfig)) == 18


def test_every_route_is_open_or_closed_on_purpose() -> None:
    routes = {name for name in vars(FleetHttpClient) if name[0].isupper()}
    assert routes - OPEN == {"RegisterNode", "UnregisterNode"}
    assert routes >= OPEN


def test_the_client_sends_through_its_interceptors() -> None:
    source = inspect.getsource(FleetHttpClient.__mro__[1])
    assert "reversed(self._interceptors)" in source and "follow_redirects=True" in source
