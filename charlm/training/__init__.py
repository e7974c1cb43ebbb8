"""Finding the weights: the trainer's loop, optimisers and schedules, and the folder that a run writes."""
