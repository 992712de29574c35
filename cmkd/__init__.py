"""What the scripts share, one subpackage per subject."""
