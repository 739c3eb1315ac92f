"""What must never be more than text."""

MARKUP = "<img src=x onerror=alert(1)>"
"""A site's name."""
