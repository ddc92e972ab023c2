"""One module for each format, each with its `read` and, but for COLMAP's and arrays, an `accepts`."""
