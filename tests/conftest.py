"""One thread: the rounding of some reductions depends on how many there are, and programs that share cores crawl."""

import torch

torch.set_num_threads(1)
