import torch

# A second thread waits by spinning: on a busy machine that made these tests twenty times as slow.
torch.set_num_threads(1)
