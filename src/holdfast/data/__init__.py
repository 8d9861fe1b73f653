"""Data sets as streams of batches: what a user names, and what is in Python already."""

from holdfast.data.dataset import from_dataset, from_tensors
from holdfast.data.frames import from_frame
from holdfast.data.load import load_data
from holdfast.data.source import Batch, Source, columns_of

__all__ = ["Batch", "Source", "columns_of", "from_dataset", "from_frame", "from_tensors", "load_data"]
