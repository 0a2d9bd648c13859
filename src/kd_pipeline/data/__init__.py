"""Images: their sources, decoding, labels and splits."""
