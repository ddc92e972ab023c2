"""One room per published architecture: a config and its modules."""
