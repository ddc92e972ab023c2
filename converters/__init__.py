"""Published checkpoints to and from this library: a rule engine and one table per checkpoint."""
