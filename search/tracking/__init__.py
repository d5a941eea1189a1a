"""MLflow: runs, the registry, the served model, the interface."""
