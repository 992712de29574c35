"""What people look at: pictures, pages, curves."""
