"""What people look at after indexing: counts, words and a page with pictures."""
