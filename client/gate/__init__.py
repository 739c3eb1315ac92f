"""The site's own gate: what may be asked of it, and what may leave."""
