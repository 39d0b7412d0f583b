"""One thread for each library.  Import this first: NumPy and PyTorch look only once, at import."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["VECLIB_MAXIMUM_THREADS"] = "1"
os.environ["KINETO_LOG_LEVEL"] = "6"  # so that PyTorch's profiler prints nothing

import gc

import torch


def settle() -> None:
    """Make everything ready to be timed."""
    torch.set_num_threads(1)
    gc.freeze()  # what the imports left behind is not to be collected during a measurement
