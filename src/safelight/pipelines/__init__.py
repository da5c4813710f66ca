"""One room per pipeline, all with the same plan; they never import one another."""
