"""The same picture twice: copies that are counted once, and copies that contradict each other.

A picture that stands in training under one patient and in testing under another makes every
figure too good, and a split by patient does not see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text
from client.data.facts import Facts

HASH_BITS = 256
NEAR_BITS = 24
"""Bits of the perceptual hash in which two near-duplicates may differ at most.

Measured on 2,069 real radiographs: two of different patients differ in 40 bits or more; a picture
and its copy at JPEG quality 50, half the size, other brightness, contrast or gamma in 20 or fewer.
"""
NEAR_CORRELATION = 0.97
"""Correlation of the kept pixels from which two pictures with near hashes are the same one."""
_BLOCK = 256
_FEW = 4096
"""Hashes up to which comparing all with all is faster than sorting them into bands."""
_BANDS = NEAR_BITS + 1
"""Hashes that differ in at most n bits agree in at least one of n + 1 bands (pigeonhole)."""


def same_image(patient: Text, labels: NDArray[np.float32]) -> Text:
    """Judge rows that show one and the same image, in table order.

    Returns '' for the first and "duplicate" for the others if they agree on the patient and on
    every label known to both, else "conflict" for all.
    """
    known = ~np.isnan(labels)
    low = np.where(known, labels, np.inf).min(axis=0, initial=np.inf)
    high = np.where(known, labels, -np.inf).max(axis=0, initial=-np.inf)
    agree = len(set(patient.tolist())) == 1 and not (low < high).any()
    return np.array(["", *["duplicate"] * (len(patient) - 1)] if agree else ["conflict"] * len(patient))


def find_duplicates(
    facts: Sequence[Facts], patient: Text, labels: NDArray[np.float32], pixels: NDArray[np.uint8]
) -> Text:
    """Return a code for each of these readable images, in table order; '' where it is the only one.

    Images are the same if the file's bytes or the SOP Instance UID are. They are nearly the same
    if hash and pixels are close; between two patients the later one gets "near-duplicate". Of
    one patient two pictures may look alike.

    Args:
        facts: of each image, hashes and UID.
        patient: ``[n]``.
        labels: ``[n, F]``, everything the site annotates.
        pixels: ``[n, S, S]``; only those of suspects are read.
    """
    code = np.full(len(facts), "", dtype="U20")
    for kind in ("sha256", "instance"):
        groups: dict[str, list[int]] = {}
        for i, fact in enumerate(facts):
            if code[i] == "" and (value := getattr(fact, kind)):
                groups.setdefault(value, []).append(i)
        for same in groups.values():
            if len(same) > 1:
                code[same] = same_image(patient[same], labels[same])
    hashed = np.array([i for i, fact in enumerate(facts) if code[i] == "" and fact.phash], dtype=np.int64)
    for first, second in near_pairs([facts[i].phash for i in hashed]):
        a, b = sorted((int(hashed[first]), int(hashed[second])))
        if patient[a] != patient[b] and "" == code[a] == code[b] and _alike(pixels[a], pixels[b]):
            code[b] = "near-duplicate"
    return code


def near_pairs(hashes: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield each pair of hashes (64 hex digits) that differ in at most `NEAR_BITS` bits, once.

    >>> list(near_pairs(["f" * 64, "0" * 64, "f" * 63 + "e"]))
    [(0, 2)]
    """
    if len(hashes) < 2:
        return
    rows = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), -1)
    words = rows.view(np.uint64)
    if len(hashes) <= _FEW:
        yield from _close(words, np.arange(len(hashes)))
        return
    # All chests share their low frequencies: bits are dealt to the bands so that none is all alike.
    bits = np.unpackbits(rows, axis=1)[:, np.random.default_rng(0).permutation(HASH_BITS)]
    seen: set[tuple[int, int]] = set()
    for band in np.array_split(bits, _BANDS, axis=1):
        key = band.astype(np.int64) @ (1 << np.arange(band.shape[1]))
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        for members in np.split(order, starts[1:]):
            for one, other in _close(words, members):
                pair = (min(one, other), max(one, other))
                if pair not in seen:
                    seen.add(pair)
                    yield pair


def _close(words: NDArray[np.uint64], members: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the pairs among the members that are near, block by block to bound the memory."""
    for start in range(0, len(members) - 1, _BLOCK):
        some, rest = members[start : start + _BLOCK], members[start:]
        distance = np.bitwise_count(words[some, None] ^ words[None, rest]).sum(axis=2)
        first, second = np.nonzero(np.triu(distance <= NEAR_BITS, 1))
        yield from zip(some[first].tolist(), rest[second].tolist(), strict=True)


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Correlate two pictures; a flat one is like none."""
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return norm > 0 and float(a @ b) / norm >= NEAR_CORRELATION
