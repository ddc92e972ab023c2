"""One module for each layout, each with a ``write`` that fills an empty folder."""
