"""Data: read scans of several formats, detect what they hold, group neighbors, gather batches."""
