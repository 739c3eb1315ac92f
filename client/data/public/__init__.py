"""Readers of public chest X-ray sets in their published layout, one module per set."""
