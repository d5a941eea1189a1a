"""What a study is: its space, its settings, and the trials that Optuna proposes."""
