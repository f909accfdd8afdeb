"""Collectives are read from HLO text: what the TPU's compiler writes, and what the CPU's does."""

import pytest

from transfusion.planning.hlo import read_program

# Shortened from a training step compiled for v5p:2x2x2.
TPU = """\
HloModule jit_step, is_scheduled=true

%all-reduce-scatter.4.clone.1 (input_0.2: f32[32,16]) -> f32[8,16] {
  %input_0.2 = f32[32,16]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.81 = f32[32,16]{1,0:T(8,128)} all-reduce(%input_0.2), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %dynamic-slice.1 = f32[8,16]{1,0:T(8,128)} dynamic-slice(%all-reduce.81), dynamic_slice_sizes={8,16}
}

%body.1 (wide.param: (s32[], f32[2,80,32], /*index=2*/f32[32,16])) -> (s32[], f32[2,80,32], /*index=2*/f32[32,16]) {
  %wide.param = (s32[]{:T(128)}, f32[2,80,32]{2,1,0:T(8,128)}, /*index=2*/f32[32,16]{1,0}) parameter(0)
  %all-gather.8 = bf16[1,32,128]{2,1,0:T(8,128)(2,1)} all-gather(%x), channel_id=4, replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={1}, metadata={op_name="while/body/calls=%body.1"}
  %fusion.9 = f32[8,16]{1,0:T(8,128)} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.4.clone.1, metadata={op_name="z"}
  ROOT %tuple.1 = (s32[], f32[2,80,32], /*index=2*/f32[32,16]) tuple(%a, %b, %c)
}

%condition.1 (wide.param.2: (s32[], f32[2,80,32], /*index=2*/f32[32,16])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(3)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%wide.param.2), index=0
  ROOT %lt.90 = pred[]{:T(512)} compare(%get-tuple-element.1, %constant.4), direction=LT
}

ENTRY %main.1 (param: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[2,80,32], /*index=2*/f32[32,16]) while(%tuple.0), condition=%condition.1, body=%body.1, metadata={op_name="jit(step)/while"}
  %all-reduce.1 = (f32[10]{0}, bf16[4]{0}) all-reduce(%p, %q), channel_id=9, replica_groups=[4,2]<=[2,4]T(1,0)
  %all-gather-start.1 = (f32[4]{0}, f32[16]{0}) all-gather-start(%r), replica_groups=[2,4]<=[8], dimensions={0}
  %all-gather-done.1 = f32[16]{0} all-gather-done(%all-gather-start.1)
  %all-to-all.1 = f32[8]{0} all-to-all(%s), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %collective-permute.1 = f32[6]{0} collective-permute(%t), source_target_pairs={{0,1},{1,2},{2,3},{3,4}}
}
"""  # noqa: E501


def test_a_loop_counts_as_often_as_it_turns_and_reductions_that_are_scattered_are_half_as_dear():
    program = read_program(TPU, devices=8, per_slice=4)
    found = {(c.kind, c.group, c.far): c for c in program.collectives}
    gather, scatter = found["all-gather", 4, False], found["reduce-scatter", 4, False]
    sizes = sorted((c.size, c.times) for c in program.collectives if c.kind == "all-gather")
    assert sizes == [(16 * 4, 1), (32 * 128 * 2, 3)] and gather.group == 4
    assert (scatter.size, scatter.times, scatter.sent) == (32 * 16 * 4, 3, 3 * 32 * 16 * 4 * 3 / 4)
    # Devices 0 and 4 are of different slices, and so are 3 and 4.
    assert found["all-reduce", 2, True].sent == 2 * (10 * 4 + 4 * 2) / 2
    assert found["all-to-all", 4, False].sent == 8 * 4 * 3 / 4
    assert found["collective-permute", 2, True].sent == 6 * 4
    assert program.unknown_loops == 0 and len(program.collectives) == 6
    assert program.bytes_sent(far=True) == 48 + 24
    assert program.bytes_sent() == pytest.approx(sum(entry["bytes"] for entry in program.by_kind().values()))
    assert program.by_kind()["all-gather"]["count"] == 4


def test_a_loop_of_unknown_length_is_counted_once_and_said_to_be():
    unknown = TPU.replace("direction=LT", "direction=NE")
    program = read_program(unknown, devices=8, per_slice=8)
    assert program.unknown_loops == 1 and {c.times for c in program.collectives} == {1}
    noted = unknown.replace(
        'body=%body.1, metadata={op_name="jit(step)/while"}',
        'body=%body.1, metadata={op_name="w"}, backend_config={"known_trip_count":{"n":"7"}}',
    )
    program = read_program(noted, devices=8, per_slice=8)
    assert program.unknown_loops == 0 and {c.times for c in program.collectives} == {1, 7}
    assert not any(c.far for c in program.collectives)


# Shortened from a training step compiled for v5e:16x16.
BESIDE = """\
%fused_computation.1 (param_0.1: f32[4]) -> (f32[4], f32[16], u32[]) {
  %all-gather.1 = f32[16]{0:T(128)} all-gather(%param_0.1), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %custom-call.1 = (f32[4], f32[16], u32[]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (param_0.2: f32[4], param_1.2: f32[16]) -> (f32[8], f32[16]) {
  %all-gather.2 = f32[16]{0:T(128)} all-gather(%param_0.2), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %tuple.2 = (f32[8], f32[16]) tuple(%product, %all-gather.2)
}

%fused_computation.3 (param_0.3: f32[4], param_1.3: f32[16]) -> f32[16] {
  %all-gather.3 = f32[16]{0:T(128)} all-gather(%param_0.3), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %custom-call.3 = f32[16]{0} custom-call(%all-gather.3, %param_1.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main.1 (param: f32[4]) -> f32[16] {
  %async-collective-start.1 = (f32[4], f32[16], u32[]) fusion(%param), kind=kCustom, calls=%fused_computation.1
  %fusion.2 = (f32[8], f32[16]) fusion(%a, %b), kind=kCustom, calls=%async_collective_fusion.2
  ROOT %async-collective-done.1 = f32[16]{0} fusion(%c, %d), kind=kCustom, calls=%fused_computation.3
}
"""


def test_a_collective_beside_which_other_work_runs_counts_once():
    (gather,) = read_program(BESIDE, devices=4, per_slice=4).collectives
    assert (gather.kind, gather.size, gather.times) == ("all-gather", 64, 1)
