# Public names, and where they live: read by lazy_loader and by type checkers.

__version__: str
