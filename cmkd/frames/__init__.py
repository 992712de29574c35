"""Files on disk <-> arrays and boxes."""
