"""Why an image is quarantined: a closed list of reasons, safe to count and to show."""

from __future__ import annotations

from typing import Literal, get_args

from common.errors import ImageError

Reason = Literal[
    "missing",
    "not-an-image",
    "truncated",
    "too-large",
    "colour",
    "modality",
    "multi-frame",
    "unsupported-syntax",
    "decode",
]
REASONS: tuple[Reason, ...] = get_args(Reason)

MAX_PIXELS = 64_000_000
"""Rows x columns above which an image is refused unread; the largest detectors have 16 million."""
MAX_BYTES = 512 * 2**20
"""File size above which an image is refused unread."""


class RefusedImage(ImageError):  # noqa: N818  (an image we count, not a fault)
    """An image that cannot be used. The text holds no name, path or value of the file's."""

    def __init__(self, reason: Reason, problem: str) -> None:
        super().__init__(f"{reason}: {problem}")
        self.reason: Reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return (RefusedImage, (self.reason, self.problem.removeprefix(f"{self.reason}: ")))
