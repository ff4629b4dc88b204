"""Text for the studies: sources, chunks, near-duplicates, splits, and the blind gate."""
