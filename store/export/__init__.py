"""Ways out of a store: columns in formats that others read without thresher."""

from store.export.run import FORMATS, Export, export_store

__all__ = ["FORMATS", "Export", "export_store"]
