"""Keeps Flower's nodes the same as the registry's admitted sites, twice a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from common.errors import FedcxrError
from server.centre.credentials import Roster
from server.centre.events import Events
from server.centre.gateway import Guard
from server.centre.links import LinkNode, Links
from server.centre.registry import RegisteredSite, Registry

HEARD_SECONDS = 3.0
"""How often last-heard times are written."""

log = logging.getLogger("fedcxr.centre")


class Members:
    """Admitted sites get a node, revoked ones lose it; who is online is written as events."""

    def __init__(self, registry: Registry, roster: Roster, links: Links, events: Events) -> None:
        self.registry = registry
        self.roster = roster
        self.links = links
        self.events = events
        self._online: dict[str, bool] = {}
        self._done: int | None = None
        self._wrote = 0.0

    def settle(self) -> list[str]:
        """Bring Flower's nodes up to the registry; returns sites whose connections are to be cut."""
        self.roster.refresh(now=True)
        version = self.registry.version()
        admitted = self.roster.admitted()
        nodes = {node.key: node for node in self.links.nodes()}
        shut: list[str] = []
        if version != self._done:
            shut = [self._shut_out(node, admitted) for key, node in nodes.items() if key not in admitted]
            for key, site in admitted.items():
                self._give_node(site, nodes[key].node if key in nodes else None)
            self._done = version
            self.roster.refresh(now=True)
        self._tell({site.name: key in nodes and nodes[key].online for key, site in admitted.items()})
        return shut

    def _give_node(self, site: RegisteredSite, node: int | None) -> None:
        node = node or self.links.add_node(site.name, site.node_key)
        if node is None:
            self.events.add("refused", f"{site.name}: its key was used before", site=site.name)
        elif node != site.node_id:
            self.registry.set_node_id(site.name, node)
            log.info("site %s is node %d", site.name, node)

    def _shut_out(self, node: LinkNode, admitted: Mapping[bytes, RegisteredSite]) -> str:
        self.links.remove_node(node.node)
        if node.name in {site.name for site in admitted.values()}:
            self.events.add("replaced", f"{node.name}'s old key is shut out", site=node.name)
        else:
            self.events.add("revoked", f"{node.name} is revoked and shut out", site=node.name)
        return node.name

    def _tell(self, online: dict[str, bool]) -> None:
        for site, is_online in online.items():
            if is_online and not self._online.get(site, False):
                self.events.add("connected", f"{site} is connected", site=site)
            elif not is_online and self._online.get(site, False):
                self.events.add("disconnected", f"{site} is no longer connected", site=site)
        self._online = online

    def write_heard(self, guard: Guard, now: bool = False) -> None:
        """Write last-heard times, every few seconds."""
        if not now and time.monotonic() - self._wrote < HEARD_SECONDS:
            return
        self._wrote = time.monotonic()
        heard, guard.heard = guard.heard, {}
        try:
            self.registry.heard(heard)
        except FedcxrError as error:
            log.warning("%s", error.problem)
