"""The processes of a deployed site."""
