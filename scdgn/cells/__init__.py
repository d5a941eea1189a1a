"""Cells: files, names, values, splits and preprocessing, down to what a network reads."""
