"""Keep a handful of child processes running: restart the dead, log their output, stop them all."""
