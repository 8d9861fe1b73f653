"""What bounds know of each operation: one small rule each."""
