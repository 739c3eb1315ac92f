"""Making a site.toml: looking at a folder, guessing, asking."""
