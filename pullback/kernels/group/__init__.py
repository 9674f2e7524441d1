"""One kernel made by several processes."""
