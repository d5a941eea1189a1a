"""What commands have in common: options and the terminal."""
