"""Entries of the registry: one module a family of models."""
