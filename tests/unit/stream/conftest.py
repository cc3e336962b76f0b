"""How the laws of this folder are tried."""

from hypothesis import settings

# The same examples in every run, and no deadline: a busy machine would miss it by chance.
settings.register_profile("laws", derandomize=True, deadline=None)
settings.load_profile("laws")
