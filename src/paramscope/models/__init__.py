"""Models under study: text to token ids, loading, and training base and target."""
