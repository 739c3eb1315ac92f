"""Access: who may look at the page. Passwords are checked one at a time, sessions live in memory."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from server.monitor.throttle import Throttle, origin
from server.monitor.users import Users, hash_password, verify_password

IDLE = 30 * 60.0
"""Seconds without a request, or an open page, after which a session ends."""
LONGEST = 12 * 3600.0
"""Seconds after which a session ends in any case."""
MOST_SESSIONS = 20
"""Of one user; the oldest gives way."""
BASIC_FOR = 300.0
"""Seconds for which a password checked for a machine is not computed again."""
MOST_WAITING = 4
"""Checks that wait for the one under way; as many again for users at an address they know."""
_MOST_CACHED = 256
_LINES = 30
"""Log lines a minute about wrong logins."""

log = logging.getLogger("fedcxr.monitor.access")


class ThrottledError(Exception):
    """A try has to wait; whether its password was right nobody looked."""

    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait
        """Seconds."""


@dataclass
class Session:
    """Somebody who has logged in."""

    user: str
    proof: str
    """Digest of the hash the password was held against: another password ends the session."""
    began: float
    seen: float


class Access:
    """Logins, sessions and the passwords of machines; used on the event loop alone."""

    def __init__(self, users: Users, always: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the users; ``always`` asks for a login even while there is none."""
        self.users, self._always, self._clock = users, always, clock
        self.throttle = Throttle(clock)
        self.computed = 0
        """Password hashes computed so far."""
        self._nobody = hash_password(secrets.token_urlsafe())
        self._pool = ThreadPoolExecutor(1, "password")
        self._waiting = {True: 0, False: 0}
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()
        self._secret = secrets.token_bytes(32)
        self._basic: OrderedDict[bytes, tuple[str, str, float]] = OrderedDict()
        self._minute, self._lines = -1, 0

    @property
    def required(self) -> bool:
        """Whether a login is asked for; once it is, it stays so until the monitor is started again."""
        if not self._always and (self.users.hashes() or self.users.damaged):
            self._always = True
        return self._always

    async def login(self, name: str, password: str, address: str) -> str | None:
        """Begin a session and return its token, which is kept nowhere; None if name or password is wrong.

        Raises:
            ThrottledError: if there were too many wrong ones, or too many are waiting.
        """
        proof = await self._check(name, password, address)
        if proof is None:
            return None
        token, now = secrets.token_urlsafe(32), self._clock()
        theirs = [key for key, session in self._sessions.items() if session.user == name]
        for key in theirs[: max(0, len(theirs) - MOST_SESSIONS + 1)]:
            del self._sessions[key]
        self._sessions[_digest(token)] = Session(name, proof, now, now)
        return token

    def session(self, token: str) -> str | None:
        """Return whose session a token is, and note that it was used; None if it is over."""
        session = self._sessions.get(key := _digest(token))
        if session is None:
            return None
        now = self._clock()
        fresh = now - session.seen <= IDLE and now - session.began <= LONGEST
        if not fresh or not self._is_current(session.user, session.proof):
            del self._sessions[key]
            return None
        session.seen = now
        return session.user

    def logout(self, token: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(token), None)

    async def basic(self, header: str, address: str) -> str | None:
        """Return the user of an ``Authorization: Basic`` header (RFC 7617); None if it is wrong.

        Raises:
            ThrottledError: as for a login.
        """
        scheme, _, encoded = header.partition(" ")
        try:
            decoded = base64.b64decode(encoded.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        name, colon, password = decoded.partition(":")
        if scheme.lower() != "basic" or not colon:
            return None
        key, now = hmac.digest(self._secret, decoded.encode(), "sha256"), self._clock()
        known = self._basic.get(key)
        if known is not None and now < known[2] and self._is_current(known[0], known[1]):
            return known[0]
        self._basic.pop(key, None)
        proof = await self._check(name, password, address)
        if proof is None:
            return None
        self._basic[key] = (name, proof, now + BASIC_FOR)
        while len(self._basic) > _MOST_CACHED:
            self._basic.popitem(last=False)
        return name

    def close(self) -> None:
        """Let go of the thread that computes."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _check(self, name: str, password: str, address: str) -> str | None:
        """Return the proof of a right password; a name nobody has costs the same time as a wrong one."""
        hashed = self.users.hashes().get(name)
        user = name if hashed is not None else ""
        at_home = self.throttle.knows(user, address)
        if (wait := self.throttle.wait(user, address)) > 0:
            raise ThrottledError(wait)
        if self._waiting[at_home] > MOST_WAITING:
            raise ThrottledError(2.0)
        self.throttle.begin(user, address)
        self._waiting[at_home] += 1
        try:
            loop = asyncio.get_running_loop()
            right = await loop.run_in_executor(self._pool, self._verify, password, hashed or self._nobody)
        finally:
            self._waiting[at_home] -= 1
        if hashed is None or not right:
            self._note(user, address)
            return None
        self.throttle.right(user, address)
        return _proof(hashed)

    def _verify(self, password: str, hashed: str) -> bool:
        self.computed += 1
        return verify_password(password, hashed)

    def _is_current(self, user: str, proof: str) -> bool:
        hashed = self.users.hashes().get(user)
        return hashed is not None and hmac.compare_digest(_proof(hashed), proof)

    def _note(self, user: str, address: str) -> None:
        """Log a wrong login; what somebody typed for a name may be a password, so it is not written."""
        minute = int(self._clock() // 60)
        self._lines = self._lines + 1 if minute == self._minute else 1
        self._minute = minute
        if self._lines <= _LINES:
            log.warning("wrong login from %s for %s", origin(address) or "?", user or "nobody we know")


def _digest(token: str) -> bytes:
    """Return what is kept of a session's token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _proof(hashed: str) -> str:
    return hashlib.sha256(hashed.encode()).hexdigest()
