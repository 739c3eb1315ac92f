"""The coordinating centre as a deployment: keys, sites, processes and runs."""
