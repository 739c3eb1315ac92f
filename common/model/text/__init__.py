"""The text tower: report text to tokens to features, by a BERT of ours or one from a folder."""
