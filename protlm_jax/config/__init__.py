"""What defines a run: its typed config, config files and recipes, and the folder of a run."""
