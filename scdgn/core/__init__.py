"""Networks, losses and training as one pack: torch and numpy alone."""
