"""One thin module per trainer. Importing this package imports no trainer."""
