"""Fixtures that the tests of the models share."""

import pytest


@pytest.fixture(params=["gpt2", "llama"])
def family(request):
    return request.param


@pytest.fixture(params=["armt", "rmt"])
def kind(request):
    return request.param
