"""What both sides must agree on; imports neither client nor server."""
