"""Whether this site's node runs already."""

from __future__ import annotations

from collections.abc import Iterator

from client.join.checks.case import Case, Outcome, ok, warning


def check_node(case: Case) -> Iterator[Outcome]:
    """A second node of the same site would fight with the first for its socket and its number."""
    from client.node.start import running_pid

    pid = running_pid(case.folder)
    if pid is not None:
        yield warning(
            "node",
            f"the node of this site is running here already (process {pid}).",
            "nothing if it is meant to run; fedcxr-site start would refuse to run a second one",
        )
    else:
        yield ok("node", "not running.")
