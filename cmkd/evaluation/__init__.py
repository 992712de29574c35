"""A list of frames through a detector: numbers, intervals, tables."""
