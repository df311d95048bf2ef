"""ringkv: a consistent-hashing, replicated key-value store."""
