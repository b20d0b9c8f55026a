"""Costs of programs whose costs can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxbooth.cost import BETWEEN_SLICES, count_flops, program_cost
from jaxbooth.models import kernels
from jaxbooth.sharding import make_mesh, over_rows

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def flops(function, *shapes):
    return count_flops(jax.make_jaxpr(function)(*shapes).jaxpr).total


def test_products_and_convolutions():
    assert flops(lambda x, w: x @ w, X, W) == 2 * 4 * 8 * 8
    image, kernel = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    forward = 2 * (2 * 6 * 6) * 5 * (3 * 3 * 3)
    assert flops(convolve, image, kernel) == forward
    # backward is twice as much: the gradients of the image and of the kernel
    assert flops(jax.grad(lambda *both: convolve(*both).sum(), argnums=(0, 1)), image, kernel) == 3 * forward


def test_a_scan_counts_as_its_steps_do():
    def scanned(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=5)[0]

    def unrolled(x, w):
        for _ in range(5):
            x = jnp.tanh(x @ w)
        return x

    assert flops(scanned, X, W) == flops(unrolled, X, W) == 5 * 2 * 4 * 8 * 8


def test_rematerialised_products_count_again():
    def two_layers(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w)

    def loss(function):
        return jax.grad(lambda x, w: function(x, w).sum(), argnums=(0, 1))

    # The forward pass makes two products and the backward pass four; both of the first are made again.
    assert flops(loss(two_layers), X, W) == 6 * 512
    assert flops(loss(jax.checkpoint(two_layers)), X, W) == 8 * 512


def test_a_loop_of_unknown_length_is_refused():
    def loop(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="how often it runs is not in the program"):
        flops(loop, X, W)


def test_products_in_a_kernel_count_as_the_matrix_unit_pads_them():
    """Splash attention: queries by keys, weights by values; 40 features in tiles of 128 lanes, 3 heads, 2 rows."""
    shape = jax.ShapeDtypeStruct((2, 512, 3, 40), jnp.bfloat16)
    flops = count_flops(jax.make_jaxpr(lambda q, k, v: kernels.splash(q, k, v))(shape, shape, shape).jaxpr)
    assert flops.kernels == flops.total == 2 * 3 * 2 * (2.0 * 512 * 512 * 128)


def test_devices_and_branches_count():
    spec = jax.sharding.PartitionSpec()
    spread = over_rows(make_mesh(1), lambda x, w: x @ w, (spec, spec), spec)
    assert flops(spread, X, W) == 512

    def branches(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

    assert flops(branches, X, W) == 2 * 512, "the dearer one"


PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%fused (a: f32[4]) -> f32[4] {
  %a = f32[4]{0:T(128)} parameter(0)
  ROOT %b = f32[4]{0:T(128)} negate(%a), backend_config={"estimated_cycles":"9999"}
}

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %s = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %f = f32[4]{0:T(128)} fusion(%s), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"10"}}
  %k = f32[4]{0:T(128)} custom-call(%f), custom_call_target="tpu_custom_call"
  %m = f32[4]{0:T(128)} custom-call(%f), custom_call_target="AllocateBuffer"
  ROOT %t = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(%s, %k)
}

%condition (s: (s32[], f32[4])) -> pred[] {
  %n = s32[]{:T(128)} constant(7)
  %s = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  ROOT %c = pred[]{:T(512)} compare(%s, %n), direction=LT
}

ENTRY %main (p: bf16[16,8]) -> bf16[16,8] {
  %p = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(0)
  %w = (s32[]{:T(128)}, f32[4]{0:T(128)}) while(%p), condition=%condition, body=%body
  %g = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}
  %r = (bf16[16,8]{1,0}, f32[4]{0}) all-reduce(%g, %w), replica_groups=[2,4]<=[8], to_apply=%fused
  %q = f32[4]{0} all-reduce(%w), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, to_apply=%fused
  %x = f32[2]{0} reduce-scatter(%r), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%fused
  ROOT %o = bf16[16,8]{1,0} copy(%g), backend_config={"window_config":{"estimated_cycles":"100"}}
}
"""


def test_loops_collectives_and_kernels_of_a_program():
    cost = program_cost(PROGRAM)
    assert cost.cycles == 7 * 10 + 100, "a fusion's own estimate holds for all inside it"
    assert cost.custom_calls == {"tpu_custom_call": 7}
    assert cost.received == {
        "all-gather": 16 * 8 * 2 * 7 // 8,
        "all-reduce": 2 * (16 * 8 * 2 + 4 * 4) * 3 // 4 + 2 * 4 * 4 * 3 // 4,
        "reduce-scatter": 2 * 4,
    }


def test_what_is_sent_inside_a_fusion_and_asynchronously_counts():
    inside = PROGRAM.replace(
        "ROOT %b = f32[4]{0:T(128)} negate(%a)", "ROOT %b = f32[4]{0} all-reduce(%a), replica_groups=[1,8]<=[8]"
    )
    assert program_cost(inside).cycles == 170
    assert program_cost(inside).received["all-reduce"] == program_cost(PROGRAM).received["all-reduce"] + 7 * 28
    started = PROGRAM.replace(
        "%g = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p)",
        "%g = (bf16[2,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%p)",
    )
    assert program_cost(started).received == program_cost(PROGRAM).received
    with pytest.raises(ValueError, match="the devices of a collective cannot be read"):
        program_cost(PROGRAM.replace("replica_groups={{0,1},{2,3},{4,5},{6,7}}", "replica_groups={}"))


def test_what_slices_send_to_each_other_counts_apart():
    """The compiler leaves it to the runtime: each of three slices receives two thirds twice, as in any ring."""
    text = """\
ENTRY %main () -> f32[] {
  %recv = (f32[6,128]{1,0:T(1,128)}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3}x{0:3}"}
  %other = (f32[6,128]{1,0:T(1,128)}, u32[], token[]) recv(%after-all.1), channel_id=2
}
"""
    assert program_cost(text).received == {BETWEEN_SLICES: 2 * 4 * 6 * 128 * 2 // 3}


def test_a_loop_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="number of trips cannot be read"):
        program_cost(PROGRAM.replace("constant(7)", "parameter(1)"))
    with pytest.raises(ValueError, match="no ENTRY"):
        program_cost("nothing")
