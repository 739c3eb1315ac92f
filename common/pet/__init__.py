"""Parameter-efficient tuning: one file per method, one registry line each."""
