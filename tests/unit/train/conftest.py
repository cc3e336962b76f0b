import torch
from hypothesis import settings

# A second thread waits by spinning: on a busy machine that made these tests twenty times as slow.
torch.set_num_threads(1)

# Of the laws of reading text, whose faults are rare: --hypothesis-profile=ten_thousand
settings.register_profile("ten_thousand", max_examples=10_000, deadline=None)
