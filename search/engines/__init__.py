"""Where trials are trained."""
