"""Give up the network, for good: a process that has done this cannot send a byte to another machine.

Twice. The kernel moves this process, and with it every process it starts, to a network namespace of
its own that holds no device but a loopback that is down. And an audit hook of Python's, which cannot
be taken off again, refuses every internet socket's connection, message and look-up, and counts them.
Where the kernel does not allow the first, the second stands alone and is said to.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_DIALLING = ("socket.connect", "socket.sendto", "socket.sendmsg")
_ASKING = (
    "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo",
)  # fmt: skip


@dataclass
class CutOff:
    """How the network was given up, and who tried to use it since."""

    devices: tuple[str, ...] | None = None
    """Network devices left to this process, by the kernel's word; None: the kernel did not help."""
    attempts: list[str] = field(default_factory=list)
    """What was tried and refused."""

    def __str__(self) -> str:
        """Say it in a sentence."""
        if self.devices is None:
            return (
                "Python refuses every internet connection of this process; the kernel of this machine does "
                "not let an ordinary account give up its network devices too"
            )
        left = " and ".join(self.devices) or "none"
        return (
            "the kernel has taken this process, and all it starts, off it\n"
            f"   (devices left: {left}, which is down), and Python refuses every internet connection besides"
        )


def cut_off() -> CutOff:
    """Give up the network. Call it first of all: a process with several threads is not moved."""
    done = CutOff()
    if _move():
        lines = Path("/proc/net/dev").read_text().splitlines()[2:]
        done.devices = tuple(line.partition(":")[0].strip() for line in lines)

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event in _ASKING or (event in _DIALLING and _is_internet(arguments)):
            done.attempts.append(event)
            raise PermissionError(f"{event}: there is no network in a rehearsal")

    sys.addaudithook(refuse)
    return done


def _is_internet(arguments: tuple[object, ...]) -> bool:
    """Tell a connection to elsewhere from one between two processes here."""
    used = arguments[0] if arguments else None
    return not (isinstance(used, socket.socket) and used.family == socket.AF_UNIX)


def _move() -> bool:
    """Move to a network namespace of our own; an ordinary account needs one for its rights first."""
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if user == 0 and libc.unshare(_NEW_NETWORK) == 0:
            return True
        if libc.unshare(_NEW_USER | _NEW_NETWORK) != 0:
            return False
    except AttributeError:
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        # Without a map of its own number the account could not make files any more.
        Path(f"/proc/self/{name}").write_text(text)
    return True
