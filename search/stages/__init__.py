"""What happens to the trials: the best are scored again, the winner is trained, calibrated, exported."""
