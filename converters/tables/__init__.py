"""One table of rules per published checkpoint."""
