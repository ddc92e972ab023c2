"""Noise schedules, samplers, guidance and losses: pure functions over arrays."""
