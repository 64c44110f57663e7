"""Other libraries' weights: their files, their layouts, and back."""
