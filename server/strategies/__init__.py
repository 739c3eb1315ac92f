"""How admitted updates become the next adapter."""
