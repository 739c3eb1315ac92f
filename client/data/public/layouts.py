"""The public sets a site can name in ``data.layout``, and what reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from client.data.columns import Text
from client.data.public import chexpert, covid, mimic, nih, openi, padchest, rsna, siim, vindr

LAYOUTS: Mapping[str, Callable[[Path], dict[str, Text]]] = {
    "nih": nih.read,
    "chexpert": chexpert.read,
    "mimic": mimic.read,
    "padchest": padchest.read,
    "vindr": vindr.read,
    "rsna": rsna.read,
    "siim": siim.read,
    "openi": openi.read,
    "covid": covid.read,
}
"""Layout -> reader of the folder it was unpacked in.

A reader returns columns of text of equal length, one row per image, '' where nothing is known:
``path`` relative to the folder, ``patient``, ``study``, ``view``, ``age``, ``sex``; ``split``,
``indication`` and ``report`` where the set has them; a column per finding (1, 0, -1 uncertain, ''
not annotated) and per clinical variable, named as in `common.findings` and `common.clinical`.
"""
