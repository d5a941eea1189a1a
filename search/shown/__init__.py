"""What is shown of a study, under way and in the end."""
