"""Fixtures that the tests of the models share; and who sees a GPU: test_gpu.py, where it is named."""

import os
import sys

import pytest

# other tests start more ranks than a machine may have GPUs, and compare bit for bit; xdist's workers inherit it
if "PYTEST_XDIST_WORKER" not in os.environ and not any("test_gpu" in word for word in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(params=["gpt2", "llama"])
def family(request):
    return request.param


@pytest.fixture(params=["armt", "rmt"])
def kind(request):
    return request.param
