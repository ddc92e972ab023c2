"""Picture models: what the stages ask of one (`interface`), which there are (`registry`), a room for each family."""
