"""The costs read from a program's text, against hand counts, XLA's own and unrolled loops."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from conic_jax.hardware import program_cost, program_text


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
  computations, entry = program_text.parse(SUNK)
  loop = next(each for each in computations[entry].values() if each.opcode == 'while')
  assert program_text.trip_count(loop, computations[entry], computations) == 5


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


NESTED = '''HloModule m
%inner (p: f32[1024,64], q: s32[], r: f32[1024]) -> bf16[16,64] {
  %p = f32[1024,64]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  %r = f32[1024]{0} parameter(2)
  %scaled = f32[1024,64]{1,0} broadcast(%r), dimensions={0}
  %all = f32[1024,64]{1,0} multiply(%p, %scaled)
  %part = f32[16,64]{1,0} dynamic-slice(%all, %q, %zero), dynamic_slice_sizes={16,64}
  ROOT %half = bf16[16,64]{1,0} convert(%part)
}

%outer (rows: f32[1024,64], at: s32[], scales: f32[1024], square: bf16[64,64]) -> bf16[16,64] {
  %rows = f32[1024,64]{1,0} parameter(0)
  %view = f32[1024,64]{1,0} bitcast(%rows)
  %at = s32[] parameter(1)
  %scales = f32[1024]{0} parameter(2)
  %square = bf16[64,64]{1,0} parameter(3)
  %few = bf16[16,64]{1,0} fusion(%view, %at, %scales), kind=kLoop, calls=%inner
  ROOT %d = bf16[16,64]{1,0} dot(%few, %square), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (rows: f32[1024,64], at: s32[], scales: f32[1024], square: bf16[64,64]) -> bf16[16,64] {
  %rows = f32[1024,64]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %scales = f32[1024]{0} parameter(2)
  %square = bf16[64,64]{1,0} parameter(3)
  ROOT %f = bf16[16,64]{1,0} fusion(%rows, %at, %scales, %square), kind=kOutput, calls=%outer
}
'''


def test_a_fusion_within_a_fusion_reads_what_it_slices():
  """Of what it computes before the slice, too: sixteen rows and their scales."""
  slices, square, result = 4 * 16 * 64 + 4 * 16, 2 * 64 * 64, 2 * 16 * 64
  assert program_cost.analyse(NESTED).bytes_accessed == pytest.approx(slices + square + result, abs=8)


UPDATED = '''HloModule m
%sum (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}}

%inner (p: f32[1024,64], i: s32[8,1], u: f32[8,64]) -> f32[1024,64] {{
  %p = f32[1024,64]{{1,0}} parameter(0)
  %i = s32[8,1]{{1,0}} parameter(1)
  %u = f32[8,64]{{1,0}} parameter(2)
  %new = f32[1024,64]{{1,0}} {update}
  ROOT %root = f32[1024,64]{{1,0}} {root}(%new)
}}

%outer (p: f32[1024,64], i: s32[8,1], u: f32[8,64]) -> (f32[1024,64], f32[8,64]) {{
  %p = f32[1024,64]{{1,0}} parameter(0)
  %i = s32[8,1]{{1,0}} parameter(1)
  %u = f32[8,64]{{1,0}} parameter(2)
  %new = f32[1024,64]{{1,0}} fusion(%p, %i, %u), kind=kLoop, calls=%inner
  %negated = f32[8,64]{{1,0}} negate(%u)
  ROOT %both = (f32[1024,64]{{1,0}}, f32[8,64]{{1,0}}) tuple(%new, %negated)
}}

ENTRY %main (p: f32[1024,64], i: s32[8,1], u: f32[8,64]) -> (f32[1024,64], f32[8,64]) {{
  %p = f32[1024,64]{{1,0}} parameter(0)
  %i = s32[8,1]{{1,0}} parameter(1)
  %u = f32[8,64]{{1,0}} parameter(2)
  ROOT %f = (f32[1024,64]{{1,0}}, f32[8,64]{{1,0}}) fusion(%p, %i, %u), kind=kLoop, calls=%outer
}}
'''
SCATTER = 'scatter(%p, %i, %u), update_window_dims={1}, inserted_window_dims={0}, to_apply=%sum'
UPDATE = 'dynamic-update-slice(%p, %u, %i, %i)'


@pytest.mark.parametrize(('update', 'root', 'expected'), [
  (SCATTER, 'bitcast', 4 * 8 * 64 * (3 + 1) + 4 * 8),
  (UPDATE, 'bitcast', 4 * 8 * 64 * (2 + 1)),
  # What is updated and then changed is no longer in place.
  (UPDATE, 'negate', 4 * 8 * 64 * (1 + 1) + 2 * 4 * 1024 * 64)], ids=['scatter', 'update', 'not in place'])
def test_an_update_in_place_moves_the_update_alone(update, root, expected):
  text = UPDATED.format(update=update, root=root)
  assert program_cost.analyse(text).bytes_accessed == pytest.approx(expected, abs=4 * 8)


@pytest.mark.parametrize(('shape', 'padded'), [
  ('f32[1000,3]{0,1:T(4,128)}', 4 * 4 * 1024), ('f32[1000,3]{1,0:T(8,128)}', 4 * 1000 * 128),
  ('bf16[7,9,100]{2,1,0:T(8,128)(2,1)}', 2 * 7 * 16 * 128), ('f32[1000]{0:T(1024)}', 4 * 1024),
  ('f32[128]{0:T(8,128)}', 4 * 8 * 128), ('f32[1000,3]{1,0}', 4 * 1000 * 3), ('s4[1000]{0}', 1000 // 2),
  ('(f32[5]{0}, pred[3]{0}, token[])', 4 * 5 + 3), ('f32[]{:T(128)}', 4)])
def test_a_shape_takes_whole_tiles_of_memory(shape, padded):
  assert program_text.size(shape) == padded


@pytest.mark.parametrize('space', [1, 2, 6])
def test_memory_on_chip_counts_only_if_asked(space):
  shape = f'(f32[1024]{{0:T(1024)S({space})}}, f32[2048]{{0:T(1024)S(0)}})'
  assert program_text.size(shape) == 4 * 2048
  assert program_text.size(shape, in_memory=False) == 4 * (1024 + 2048)


def test_a_library_calls_scratch_memory_is_not_moved():
  text = '''HloModule m
ENTRY %main (a: f16[4,8], b: f16[8,2]) -> f16[4,2] {
  %a = f16[4,8]{1,0} parameter(0)
  %b = f16[8,2]{1,0} parameter(1)
  %call = (f16[4,2]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul"
  ROOT %out = f16[4,2]{1,0} get-tuple-element(%call), index=0
}
'''
  assert program_cost.analyse(text).bytes_accessed == 2 * (4 * 8 + 8 * 2 + 4 * 2)


PALLAS = '''HloModule m
ENTRY %main (a: f32[512,128], b: {kind}[64,128]) -> f32[64,128] {{
  %a = f32[512,128]{{1,0}} parameter(0)
  %b = {kind}[64,128]{{1,0}} parameter(1)
  %call = (f32[64]{{0}}, f32[64,128]{{1,0}}) custom-call(%a, %b), custom_call_target={target}
  ROOT %out = f32[64,128]{{1,0}} get-tuple-element(%call), index=1
}}
'''
TRITON = (r'"__gpu$xla.gpu.triton", backend_config={debug = false, grid_x = 4 : i32, ir = "ML\EF\22}", '
          r'name = "negatives", num_warps = 8 : i32, serialized_metadata = "{\22flops\22: \2216777216\22, '
          r'\22bytes_accessed\22: \221081344\22}"}')
MOSAIC = ('"tpu_custom_call", frontend_attributes={kernel_metadata={}}, backend_config={"custom_call_config":'
          '{"body":"TUzvUg==","cost_estimate":{"flops":"16777216","transcendentals":"32768",'
          '"bytes_accessed":"1081344","remote_bytes_transferred":"0"},"needs_layout_passes":true}}')


@pytest.mark.parametrize('target', [TRITON, MOSAIC], ids=['triton', 'mosaic'])
@pytest.mark.parametrize(('kind', 'half'), [('bf16', True), ('f16', True), ('f32', False)])
def test_a_pallas_kernel_costs_what_it_states(target, kind, half):
  kernel, = program_cost.analyse(PALLAS.format(kind=kind, target=target)).kernels
  assert (kernel.half_flops, kernel.single_flops) == ((2 ** 24, 0) if half else (0, 2 ** 24))
  assert kernel.bytes == 1081344


@pytest.mark.parametrize('target', [
  TRITON.replace('serialized_metadata', 'other'), MOSAIC.replace('cost_estimate', 'other'),
  MOSAIC.replace('flops', 'other'), TRITON.replace('__gpu$xla.gpu.triton', 'other')])
def test_a_kernel_that_states_no_cost_moves_its_operands_and_results(target):
  kernel, = program_cost.analyse(PALLAS.format(kind='f32', target=target)).kernels
  assert kernel.half_flops == kernel.single_flops == 0
  assert kernel.bytes == 4 * (512 * 128 + 64 * 128 + 64 + 64 * 128)


# ---- Choices ------------------------------------------------------------------------------------


CHOICE = '''HloModule m
%nothing (a: f32[64,64]) -> f32[64,64] {
  ROOT %a = f32[64,64]{1,0} parameter(0)
}

%once (a: f32[64,64]) -> f32[64,64] {
  %a = f32[64,64]{1,0} parameter(0)
  ROOT %d = f32[64,64]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%sum (a: f32[64,64]) -> f32[64,64] {
  %a = f32[64,64]{1,0} parameter(0)
  %b = f32[64,64]{1,0} all-reduce(%a), channel_id=1
  %c = f32[64,64]{1,0} negate(%b)
  ROOT %d = f32[64,64]{1,0} negate(%c)
}

%body (p: (s32[], s32[], f32[64,64])) -> (s32[], s32[], f32[64,64]) {
  %p = (s32[], s32[], f32[64,64]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %k = s32[] get-tuple-element(%p), index=1
  %x = f32[64,64]{1,0} get-tuple-element(%p), index=2
  %y = f32[64,64]{1,0} conditional(%k, %x, %x, %x), branch_computations={%nothing, %once, %sum}
  ROOT %t = (s32[], s32[], f32[64,64]) tuple(%i, %k, %y)
}

%condition (p: (s32[], s32[], f32[64,64])) -> pred[] {
  %p = (s32[], s32[], f32[64,64]) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (k: s32[], a: f32[64,64]) -> (s32[], s32[], f32[64,64]) {
  %k = s32[] parameter(0)
  %a = f32[64,64]{1,0} parameter(1)
  %b = f32[64,64]{1,0} negate(%a)
  %start = (s32[], s32[], f32[64,64]) tuple(%k, %k, %b)
  ROOT %w = (s32[], s32[], f32[64,64]) while(%start), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"10"}}
}
'''.replace('\\\n', '')
SQUARE = 4 * 64 * 64


@pytest.mark.parametrize(('pick', 'weight', 'moved', 'products', 'collectives'), [
  (min, lambda cost: cost.bytes_accessed, 2 * SQUARE, 0, 0),
  (max, lambda cost: cost.bytes_accessed, 2 * SQUARE + 10 * 3 * 2 * SQUARE, 0, 10),
  (max, lambda cost: cost.flops, 2 * SQUARE + 10 * 3 * SQUARE, 10, 0)])
def test_a_conditional_takes_its_cheapest_or_its_dearest_branch_each_time(pick, weight, moved, products,
                                                                         collectives):
  cost = program_cost.analyse(CHOICE)
  found = program_cost.chosen(cost, pick, weight)
  assert found.bytes_accessed == moved
  assert found.flops == products * 2 * 64 ** 3
  assert sum(each.count for each in found.collectives) == collectives
  assert not found.choices
  assert cost.bytes_accessed == 2 * SQUARE


def test_a_choice_within_a_choice_is_made_there():
  kernel = lambda number: program_cost.Kernel(0, 0, number, 1)
  leaf = lambda number: program_cost.Cost((kernel(number),), (), 0)
  inner = program_cost.Cost((kernel(10),), (), 1, (program_cost.Choice((leaf(1), leaf(5)), 3),))
  cost = program_cost.Cost((kernel(100),), (), 0, (program_cost.Choice((inner, leaf(20)), 2),))
  assert program_cost.chosen(cost, min).bytes_accessed == 100 + 2 * (10 + 3 * 1)
  assert program_cost.chosen(cost, max).bytes_accessed == 100 + 2 * (10 + 3 * 5)
  assert program_cost.chosen(cost, max).unknown_loops == 1


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
