"""One suite, two backends: every test here runs with both."""

import importlib

import pytest


@pytest.fixture(params=["jaxbooth", "torchbooth"])
def package(request):
    return request.param


@pytest.fixture
def backend_class(package):
    return importlib.import_module(f"{package}.backend").Backend
