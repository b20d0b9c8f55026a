"""Weights of every model come back from jaxbooth as they were."""

import numpy as np
import pytest

from jaxbooth.weights import to_diffusers

pytestmark = pytest.mark.usefixtures("strict_numerics")


@pytest.mark.parametrize("model", ["sd1_unet", "sd2_unet", "autoencoder", "text_encoder", "sd2_text_encoder"])
def test_weights_come_back_to_the_bit(request: pytest.FixtureRequest, model: str) -> None:
    pair = request.getfixturevalue(model)
    assert pair.params.keys() == pair.tensors.keys()
    for name, tensor in pair.tensors.items():
        back = to_diffusers(pair.network, name, pair.params[name])
        assert back.dtype == tensor.dtype
        assert back.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(back.view(np.uint32), tensor.view(np.uint32))
