"""Fixtures with which every test in this folder runs with both backends."""

import importlib

import pytest


@pytest.fixture(params=["jaxbooth", "torchbooth"])
def package(request):
    return request.param


@pytest.fixture
def backend_class(package):
    return importlib.import_module(f"{package}.backend").Backend
