"""Tasks and texts: readers, writers and datasets."""
