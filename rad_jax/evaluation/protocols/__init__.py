"""What --mode=evaluate measures: one module a protocol."""
