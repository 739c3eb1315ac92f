"""Names as a figure shows them.

Plotly reads ``<b>`` and ``<a href>`` in any label as markup, so every name goes through `plain`.
"""

from __future__ import annotations

import unicodedata

_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def plain(text: str, most: int = 0) -> str:
    """Return ``text`` so that Plotly shows it as it is, cut after ``most`` characters if given.

    Characters that draw nothing or turn the writing direction become spaces.

    >>> plain("<b>north</b> & co"), plain("a very long name", 7)
    ('&lt;b&gt;north&lt;/b&gt; &amp; co', 'a very…')
    """
    text = "".join(" " if unicodedata.category(letter).startswith("C") else letter for letter in text)
    if most and len(text) > most:
        text = text[: most - 1].rstrip() + "…"
    return text.translate(_ENTITIES)
