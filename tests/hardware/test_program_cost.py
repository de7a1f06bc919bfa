"""The costs read from a program's text, against hand counts, XLA's own and unrolled loops."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from conic_jax.hardware import program_cost


def compiled(function, *shapes, **options):
  return jax.jit(function, **options).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()


def cost(function, *shapes, **options):
  return program_cost.analyse(compiled(function, *shapes, **options).as_text())


# ---- Products -----------------------------------------------------------------------------------


def test_a_product_has_two_operations_a_term():
  assert cost(lambda a, b: a @ b, (5, 7), (7, 11)).flops == 2 * 5 * 7 * 11


def test_a_batched_product_counts_every_one():
  assert cost(lambda a, b: jnp.einsum('bij,bkj->bik', a, b), (3, 4, 5), (3, 6, 5)).flops == 2 * 3 * 4 * 5 * 6


def test_products_of_16_bits_are_counted_apart():
  text = '''HloModule m
ENTRY %main (a: f16[4,8], b: f16[8,2]) -> f32[4,2] {
  %a = f16[4,8]{1,0} parameter(0)
  %b = f16[8,2]{1,0} parameter(1)
  ROOT %d = f32[4,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
'''
  kernel, = program_cost.analyse(text).kernels
  assert (kernel.half_flops, kernel.single_flops) == (2 * 4 * 8 * 2, 0)
  assert kernel.bytes == 2 * 4 * 8 + 2 * 8 * 2 + 4 * 4 * 2
  assert sum(each.single_flops for each in cost(jnp.matmul, (4, 8), (8, 2)).kernels) == 2 * 4 * 8 * 2


CONVOLUTIONS = [
  {'window_strides': (1, 1), 'padding': 'VALID'},
  {'window_strides': (2, 2), 'padding': ((1, 1), (2, 0))},
  {'window_strides': (1, 2), 'padding': 'SAME', 'rhs_dilation': (2, 1)},
  {'window_strides': (1, 1), 'padding': ((2, 2), (2, 2)), 'lhs_dilation': (2, 2)},
  {'window_strides': (1, 1), 'padding': 'SAME', 'feature_group_count': 2},
]


def convolve(options):
  kernel = (3, 3, 4 // options.get('feature_group_count', 1), 6)
  function = lambda x, w: jax.lax.conv_general_dilated(
    x, w, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options)
  return function, (2, 9, 8, 4), kernel


@pytest.mark.parametrize('options', CONVOLUTIONS)
def test_convolutions_count_what_xla_counts_padding_left_out(options):
  program = compiled(*convolve(options))
  assert program_cost.analyse(program.as_text()).flops == program.cost_analysis()['flops'] > 0


LIBRARY_CALL = '''HloModule m
ENTRY %main (a: f32[{a}], b: f32[{b}]) -> f32[{result}] {{
  %a = f32[{a}]{{3,2,1,0}} parameter(0)
  %b = f32[{b}]{{3,2,1,0}} parameter(1)
  %call = (f32[{result}]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%a, %b), \
window={{size=3x3 stride=2x2 pad=1_1x2_0}}, dim_labels=b01f_01io->b01f, \
custom_call_target="__cudnn$conv{kind}"
  ROOT %out = f32[{result}]{{3,2,1,0}} get-tuple-element(%call), index=0
}}
'''


@pytest.mark.parametrize('kind', ['Forward', 'BackwardFilter', 'BackwardInput'])
def test_a_gpus_library_calls_cost_what_the_convolution_does(kind):
  function, image, kernel = convolve(CONVOLUTIONS[1])
  output = jax.eval_shape(function, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in (image, kernel))).shape
  a, b, result = {'Forward': (image, kernel, output), 'BackwardFilter': (image, output, kernel),
                  'BackwardInput': (output, kernel, image)}[kind]
  shapes = {name: ','.join(map(str, shape)) for name, shape in (('a', a), ('b', b), ('result', result))}
  found = program_cost.analyse(LIBRARY_CALL.format(kind=kind, **shapes))
  assert found.flops == cost(function, image, kernel).flops


def test_a_gpus_product_keeps_its_axes_in_the_configuration():
  text = '''HloModule m
ENTRY %main (a: f16[4,8], b: f16[8,2]) -> f16[4,2] {
  %a = f16[4,8]{1,0} parameter(0)
  %b = f16[8,2]{1,0} parameter(1)
  %call = (f16[4,2]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  ROOT %out = f16[4,2]{1,0} get-tuple-element(%call), index=0
}
'''
  assert program_cost.analyse(text).flops == 2 * 4 * 8 * 2


# ---- Loops --------------------------------------------------------------------------------------


def repeated(unroll):
  """Twelve products of a chain, in a loop in a loop or written out."""
  def function(a, b):
    inner = lambda _, x: jnp.tanh(x @ b)
    outer = lambda _, x: jax.lax.fori_loop(0, 4, inner, x, unroll=unroll)
    return jax.lax.fori_loop(0, 3, outer, a, unroll=unroll)
  return function


def test_a_loop_counts_as_often_as_it_runs():
  looped, unrolled = (cost(repeated(unroll), (8, 16), (16, 16)) for unroll in (False, True))
  assert looped.flops == unrolled.flops == 12 * 2 * 8 * 16 * 16
  assert looped.unknown_loops == 0


def test_a_loop_of_no_known_length_counts_once_and_is_told():
  function = lambda a, b: jax.lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: x @ b, a)
  found = cost(function, (8, 16), (16, 16))
  assert found.unknown_loops == 1
  assert found.flops == 2 * 8 * 16 * 16


SUNK = '''HloModule m
%body (p: (s32[], s32[])) -> (s32[], s32[]) {
  %p = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %step = s32[] get-tuple-element(%p), index=1
  %copied = s32[] copy(%i)
  %next = s32[] add(%copied, %step)
  ROOT %t = (s32[], s32[]) tuple(%next, %step)
}

%condition (p: (s32[], s32[])) -> pred[] {
  %p = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %bound = s32[] constant(9)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (i: s32[]) -> (s32[], s32[]) {
  %zero = s32[] constant(0)
  %two = s32[] constant(2)
  %copied = s32[] copy(%two)
  %start = (s32[], s32[]) tuple(%zero, %copied)
  ROOT %while = (s32[], s32[]) while(%start), condition=%condition, body=%body
}
'''


def test_a_stride_that_is_handed_into_a_loop_is_found():
  computations, entry = program_cost.parse(SUNK)
  loop = next(each for each in computations[entry].values() if each.opcode == 'while')
  assert program_cost.trip_count(loop, computations[entry], computations) == 5


# ---- Bytes --------------------------------------------------------------------------------------


def test_bytes_of_a_kernel_are_its_operands_and_its_result():
  found = cost(lambda a, b: a @ b, (64, 32), (32, 16))
  assert found.bytes_accessed == 4 * (64 * 32 + 32 * 16 + 64 * 16)


def test_rows_updated_in_place_by_chunks_move_once_not_once_a_chunk():
  rows, dim, size = 4096, 64, 64

  def decay(w):
    def chunk(index, w):
      old = jax.lax.dynamic_slice_in_dim(w, index * size, size)
      return jax.lax.dynamic_update_slice_in_dim(w, 0.9 * old, index * size, 0)
    return jax.lax.fori_loop(0, rows // size, chunk, w)

  moved = cost(decay, (rows, dim), donate_argnums=0).bytes_accessed
  assert moved == pytest.approx(2 * 4 * rows * dim, rel=0.05)


def test_what_stays_on_chip_does_not_count():
  text = '''HloModule m
ENTRY %main (a: f32[256]) -> f32[256] {
  %a = f32[256]{0:T(256)} parameter(0)
  %in = (f32[256]{0:T(256)S(1)}, f32[256]{0:T(256)}, u32[]{:S(2)}) copy-start(%a)
  %done = f32[256]{0:T(256)S(1)} copy-done(%in)
  %b = f32[256]{0:T(256)S(1)} negate(%done)
  ROOT %c = f32[256]{0:T(256)} negate(%b)
}
'''
  assert program_cost.analyse(text).bytes_accessed == pytest.approx(2 * 1024, abs=8)


# ---- Collectives --------------------------------------------------------------------------------


def test_collectives_with_their_bytes_and_as_often_as_they_run(mesh8):
  spec = PartitionSpec('data')

  def local(x):
    def body(_, x):
      everyone = jax.lax.all_gather(x, 'data', tiled=True)
      return jax.lax.psum_scatter(jnp.sin(everyone), 'data', tiled=True)
    x = jax.lax.fori_loop(0, 3, body, x)
    shifted = jax.lax.ppermute(x, 'data', [(i, (i + 1) % 8) for i in range(8)])
    return x, shifted, jax.lax.psum(jnp.cos(x), 'data')

  function = jax.shard_map(local, mesh=mesh8, in_specs=spec, out_specs=(spec, spec, PartitionSpec()))
  found = cost(function, (64, 16))
  assert {(each.kind, each.bytes, each.count) for each in found.collectives} == {
    ('all-gather', 4 * 64 * 16, 3), ('reduce-scatter', 4 * 64 * 16, 3),
    ('collective-permute', 4 * 8 * 16, 1), ('all-reduce', 4 * 8 * 16, 1)}
  assert [each.bytes * each.count for each in found.collectives] == sorted(
    (each.bytes * each.count for each in found.collectives), reverse=True)


@pytest.mark.parametrize(('kind', 'given', 'result'), [
  ('all-gather', 'f32[8]', '(f32[8]{0}, f32[64]{0})'),
  ('reduce-scatter', 'f32[64]', '(f32[64]{0}, f32[8]{0})'),
  ('all-reduce', 'f32[64]', 'f32[64]{0}'), ('all-reduce', 'f32[64]', '(f32[64]{0}, f32[64]{0})')])
def test_a_collective_under_way_beside_others_counts_once(kind, given, result):
  text = f'''HloModule m
ENTRY %main (a: {given}) -> f32[8] {{
  %a = {given}{{0}} parameter(0)
  %start = {result} {kind}-start(%a), channel_id=1
  ROOT %done = f32[8]{{0}} {kind}-done(%start)
}}
'''
  collective, = program_cost.analyse(text).collectives
  assert collective == program_cost.Collective(kind, 256, 1)


def test_a_collective_inside_a_fusion_is_found():
  text = '''HloModule m
%fused (p: bf16[32]) -> bf16[4] {
  %p = bf16[32]{0} parameter(0)
  %sum = bf16[32]{0} all-reduce(%p), channel_id=1
  ROOT %part = bf16[4]{0} slice(%sum), slice={[0:4]}
}

ENTRY %main (a: bf16[32]) -> bf16[4] {
  %a = bf16[32]{0} parameter(0)
  ROOT %f = bf16[4]{0} fusion(%a), kind=kCustom, calls=%fused
}
'''
  assert program_cost.analyse(text).collectives == (program_cost.Collective('all-reduce', 64, 1),)


def test_a_train_like_program_agrees_with_xla_where_nothing_loops():
  """Two layers with their gradients: XLA adds an operation for each elementwise result."""
  def loss(params, x):
    return jnp.sum(jnp.tanh(x @ params[0]) @ params[1])
  program = jax.jit(jax.grad(loss)).lower(
    tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in ((128, 256), (256, 64))),
    jax.ShapeDtypeStruct((512, 128), jnp.float32)).compile()
  ours, xlas = program_cost.analyse(program.as_text()).flops, program.cost_analysis()['flops']
  assert ours <= xlas
  np.testing.assert_allclose(ours, xlas, rtol=0.03)
