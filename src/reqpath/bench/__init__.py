"""The experiment: what is compared, in which order, by what load, and what can be said of it."""
