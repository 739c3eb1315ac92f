"""From a table of studies to arrays a training loop can read."""
