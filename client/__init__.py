"""What runs at a hospital; the only code that reads images."""
