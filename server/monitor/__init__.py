"""The page a coordinating centre keeps open, and what machines read beside it."""
