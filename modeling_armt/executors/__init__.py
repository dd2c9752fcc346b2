"""Orders in which the cells (layer, segment) of the recurrence are run."""
