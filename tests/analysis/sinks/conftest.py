"""Tiny models on disk, and batches made by hand."""

from tests.harvest.conftest import save_tiny as save_tiny
