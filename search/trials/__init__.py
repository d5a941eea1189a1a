"""What a trial is: the cells that it may see, its training, its scores, its checkpoints."""
