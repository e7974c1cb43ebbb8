"""Finding the weights: the trainer's loop, optimizers and schedules, and the folder that a run writes."""
