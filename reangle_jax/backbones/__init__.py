"""What a video model is to the stages: one interface, one module a family, a registry.

``registry.py`` says which models there are and on what grid, without loading anything; ``interface.py`` what each of
them can do; a family's room binds its networks into that.
"""
