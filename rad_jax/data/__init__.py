"""Data: synthetic sets, image sources, corruptions, batches."""
