"""Several simulated sites trained in one pass: their adapters stacked on one shared frozen base."""
