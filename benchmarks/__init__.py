"""What the speed claims rest on: each script prints a small table of ratios, measured in one run."""
