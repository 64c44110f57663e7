"""Data: synthetic worlds, TFDS sources, corruptions, batches."""
