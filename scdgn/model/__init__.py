"""A trained model: fitted, saved and loaded, evaluated, and what it says of cells."""
