"""Reports at a site: what they say, what is taken out of them, and whether enough was taken out."""
