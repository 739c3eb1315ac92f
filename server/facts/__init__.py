"""What a run's ledger says, computed for people and for machines; nothing here writes."""
