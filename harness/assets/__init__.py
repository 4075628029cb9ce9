"""Model and data files: hub download, packaged assets, checksums, the cache. Never imports torch."""
