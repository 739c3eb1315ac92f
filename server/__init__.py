"""The coordinating centre; never sees an image."""
