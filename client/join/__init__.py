"""How a site joins a federation: keys, request, checks."""
