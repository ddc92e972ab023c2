"""How the small family is made: procedural scenes and what is rendered of them, one training command a network."""
