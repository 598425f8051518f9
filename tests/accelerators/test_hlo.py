"""The text of compiled programs is read as it stands."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from videomar_jax.accelerators.hlo import Buffer, parse

HERE = Path(__file__).parent
LINES = """HloModule made_up

FileNames
1 "/somewhere/site-packages/flax/nnx/linear.py"
2 "/home/user/videomar_jax/models/layers.py"

FunctionNames
1 "call"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=2 end_column=2}
2 {file_name_id=2 function_name_id=1 line=27 end_line=28 column=2 end_column=2}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

ENTRY %main (a: f32[2,3], b: (s4[10], pred[])) -> f32[2,3] {
  %a = f32[2,3]{1,0:T(8,128)S(1)} parameter(0), sharding={devices=[4,1]<=[4]}
  %b = (s4[10]{0}, /*index=1*/pred[]{:T(512)}) parameter(1)
  %text = f32[] constant(-1e-3), metadata={op_name="a (b) = %c" stack_frame_id=1}
  ROOT %out.1 = f32[2,3]{1,0} custom-call(%a, /*index=1*/%b), custom_call_target="mine", OPTIONS
}
""".replace("OPTIONS", "metadata={stack_frame_id=2}")


def test_an_instruction_has_its_arrays_operands_and_attributes():
    program = parse(LINES)
    main = program.computations[program.entry]
    assert list(main.instructions) == ["a", "b", "text", "out.1"] and main.root == "out.1"
    assert main.parameter(1).outputs == (Buffer("s4", (10,)), Buffer("pred", ()))
    assert main.parameter(1).size == 5 + 1 and main.parameter(2) is None
    assert main.instructions["a"].outputs == (Buffer("f32", (2, 3), space=1),)
    assert main.instructions["text"].literal == "-1e-3"
    assert main.instructions["text"].operands == ()
    out = main.instructions["out.1"]
    assert out.operands == ("a", "b")
    assert out.attribute(r'custom_call_target="([^"]*)"') == "mine"
    assert [user.name for user in main.users["a"]] == ["out.1"]


def test_the_innermost_line_of_the_package_is_the_source():
    program = parse(LINES)
    out = program.computations["main"].instructions["out.1"]
    assert program.source(out, "videomar_jax") == "videomar_jax/models/layers.py:27"
    assert program.source(out, "elsewhere") == "/somewhere/site-packages/flax/nnx/linear.py:3"
    assert program.source(program.computations["main"].instructions["a"], "videomar_jax") is None


@pytest.mark.parametrize("text", ["", "HloModule x\n", LINES.removesuffix("}\n")])
def test_half_a_program_is_refused(text):
    with pytest.raises(ValueError, match="not the whole text"):
        parse(text)


def test_a_line_that_is_cut_off_is_refused():
    with pytest.raises(ValueError, match="cut off: custom-call"):
        parse(LINES.replace("%b), custom_call_target", "%b, custom_call_target"))


@pytest.mark.parametrize("name", ["tpu.txt", "gpu.txt"])
def test_recorded_programs_are_whole(name):
    text = (HERE / name).read_text()
    program = parse(text)
    count = sum(len(each.instructions) for each in program.computations.values())
    assert count == text.count("\n  %") + text.count("\n  ROOT %")
    for computation in program.computations.values():
        for instruction in computation.instructions.values():
            assert set(instruction.operands) <= set(computation.instructions)
            for names in instruction.called.values():
                assert names and set(names) <= set(program.computations)


def test_a_program_compiled_here_is_read():
    compiled = jax.jit(lambda x: jnp.tanh(x @ x)).lower(jnp.ones((8, 8))).compile()
    program = parse(compiled.as_text())
    parameter = program.computations[program.entry].parameter(0)
    assert parameter.outputs == (Buffer("f32", (8, 8)),)
