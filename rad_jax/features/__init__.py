"""What sample quality is measured in: networks, and how they are run."""
