"""Reports: figures and tables, made from saved results only."""
