"""scripts/compile_for.py: what it counts, what it refuses, and that the presets compile for a GPU and a TPU."""

import doctest
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import compile_for
import launches
from compile_for import COMPILERS, TARGETS, Row, cells, is_installed, to_markdown, write_into
from launches import Hlo, UnknownProgramError, launches_a_step

ROOT = Path(__file__).parents[2]
HAS_COMPILERS = all(is_installed(module) for module, _ in COMPILERS.values())

KNOWN = 'backend_config={"known_trip_count":'
HLO = """HloModule jit_run_steps, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, may-alias) }, other={}

%body (p: (s32[])) -> (s32[]) {
  %p = (s32[]) parameter(0)
  ROOT %psum.1 = f32[9]{0} all-reduce-start(%p), to_apply=%add
}

%until_28 (p: (s32[])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(28), metadata={op_name="lt"}
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %constant.7), direction=LT, metadata={op_name="lt"}
}

%until_given (p: (s32[], s32[])) -> pred[] {
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  ROOT %lt.2 = pred[] compare(%i, %n), direction=LT
}

%step (p: (s32[], s32[])) -> (s32[], s32[]) {
  %p = (s32[], s32[]) parameter(0)
  %time.3 = (s32[], /*index=5*/s32[]) while(%p), condition=%until_given, body=%body, KNOWN{"n":"3"}}
  %time.28 = (s32[], /*index=5*/s32[]) while(%time.3), condition=%until_28, body=%body
  %draw = (s32[], s32[]) while(%time.28), condition=%until_given, body=%body
  ROOT %psum.2 = f32[9]{0} all-reduce(%draw), to_apply=%add
}

ENTRY %main (a: (s32[], s32[])) -> (s32[], s32[]) {
  %a = (s32[], s32[]) parameter(0)
  ROOT %steps = (s32[], s32[]) while(%a), condition=%until_given, body=%step
}
""".replace("KNOWN", KNOWN)

THUNKS = """000: kCommandBuffer [source | next=002 (1)]
    001: kCopy [source | sink] kCopy
002: kWhile [prev=000 (1) | next=000 (1)]
condition:
    003: kKernel [source | sink] compare
  body:
    000: kCommandBuffer [source | next=030 (1)]
        004: kCustomKernel [source | sink] add
        005: kWhile [source | sink]
condition:
            006: kKernel [source | sink] compare
          body:
            007: kKernel [source | sink] multiply
            008: kDynamicSliceFusion [source | sink] params=1
                009: kCopy [source | sink] kCopy
    010: kWhile [source | sink]
condition:
        011: kKernel [source | sink] compare
      body:
        000: kCommandBuffer [source | sink]
            012: kKernel [source | sink] add
            013: kKernel [source | sink] add
        014: kKernel [source | sink] add
    015: kAsyncStart [source | sink]
        016: kAllReduce [source | sink] kAllReduce
    017: kAsyncDone [source | sink] async_id=15
    018: kWhile [source | sink]
condition:
        019: kKernel [source | sink] compare
      body:
        020: kKernel [source | sink] add
"""

METADATA = """thunk_metadata { thunk_info { profile_annotation: "steps"
    thunk_id: 2 } thunk_kind: "kWhile" }
thunk_metadata { thunk_info { profile_annotation: "time.28" thunk_id: 5 } thunk_kind: "kWhile" }
thunk_metadata { thunk_info { profile_annotation: "time.3" thunk_id: 10 } thunk_kind: "kWhile" }
thunk_metadata { thunk_info { profile_annotation: "draw" thunk_id: 18 } thunk_kind: "kWhile" }
"""


def test_the_examples_run():
    found = doctest.testmod(launches)
    assert (found.failed, found.attempted) == (0, 5)


def test_loops_and_all_reduces_of_a_step():
    hlo = Hlo(HLO)
    assert hlo.step_loop().name == "steps"
    assert hlo.trips() == {"time.3": 3, "time.28": 28, "draw": None, "steps": None}
    assert hlo.loops_of_unknown_length() == ["draw"]
    assert hlo.all_reduces_a_step() == 3 + 28 + 1 + 1
    assert hlo.aliased == 2


def test_a_graph_is_one_launch_and_its_kernels_are_counted_too():
    found = launches_a_step(THUNKS, METADATA, Hlo(HLO))
    # The graph; three times a graph and a kernel; the all-reduce; a loop of unknown length with its condition, which
    # the host reads; and so for the loop over steps.
    assert found.launches == 1 + 3 * 2 + 1 + (1 + 1 + 1) + (1 + 1)
    assert found.kernels == (1 + 28 * 2) + 3 * 3 + 1 + (1 + 1 + 1) + (1 + 1)


@pytest.mark.parametrize(
    ("hlo", "metadata", "message"),
    [
        ("HloModule m\n", METADATA, "no ENTRY computation"),
        (HLO.replace("body=%step", 'body=%step, KNOWN{"n":"9"}}'.replace("KNOWN", KNOWN)), METADATA, "found 0"),
        (HLO, METADATA.replace("time.3", "other"), r"loop 10 \(other\) is not in its HLO"),
    ],
)
def test_texts_of_other_programs_are_refused(hlo, metadata, message):
    with pytest.raises(UnknownProgramError, match=message):
        launches_a_step(THUNKS, metadata, Hlo(hlo))


def test_rows_that_fail_or_do_not_fit_say_so(tmp_path):
    fits = Row("smoke", "h100-1", 1, False, 9.6, 1000.0, 1.0, 0, 2, 1234, 0, True)
    rows = [fits, Row("smoke", "v5e-1", 4, True, 3.0, 1100.0, 1.0), Row("rows", "v5e-8", 1, False, error="No | room")]
    assert [row.fits for row in rows] == [True, False, False]
    assert cells(rows[0])[:4] == ("smoke", "h100-1", "10", "1,000 MiB of 1.0 GiB")
    assert cells(rows[0])[4:] == ("0", "2", "1,234", "0", "yes")
    assert cells(rows[1])[:2] == ("smoke, 4 at once, streamed", "no: v5e-1")
    assert cells(rows[2])[3] == "No \\| room"
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- compile_for -->\n<!-- end of compile_for -->\nafter\n")
    for written in (rows, rows[1:]):
        write_into(page, written)
        assert page.read_text() == (
            f"before\n<!-- compile_for -->\n\n{to_markdown(rows)}\n<!-- end of compile_for -->\nafter\n"
        )
    changed = [replace(rows[0], error="stopped"), *rows[1:]]
    write_into(page, changed[:1])
    assert to_markdown(changed) in page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--targets", "h200-1"], "unknown target 'h200-1'; expected one of v5e-1, v5e-8, h100-1, h100-8, a100-1."),
        (["--targets"], "--targets names no target; expected some of v5e-1, v5e-8"),
        (["--output", "missing/found.json"], "the folder of --output missing/found.json does not exist."),
        (["--into", "missing.md"], "the file of --into missing.md does not exist."),
        (["--into", str(ROOT / "README.md")], "README.md has no place for the table: a line <!-- compile_for -->"),
        (["--members", "0"], "members is 0, expected 1 or more."),
        (["--members", "2", "--stream"], "several members cannot stream"),
        pytest.param(
            ["smoke", "--targets", "v5e-1"],
            "the compiler for tpu is missing (libtpu). Install it with: pip install -e '.[aot]'",
            marks=pytest.mark.skipif(HAS_COMPILERS, reason="the compilers are installed"),
        ),
        pytest.param(
            ["smoke"],
            "JAX was imported already, with other settings.",
            marks=pytest.mark.skipif(not HAS_COMPILERS, reason="the compilers are not installed"),
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compile_for.py", *words])
    with pytest.raises(SystemExit) as end:
        compile_for.main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILERS, reason="needs XLA's compilers for GPUs and TPUs, the extra aot")
def test_smoke_and_tutorial_compile_for_a_tpu_and_a_gpu(tmp_path):
    words = ["smoke", "tutorial", "--targets", "v5e-8", "h100-1", "--output", str(tmp_path / "found.json")]
    # Compiled as users have it, and with the options that the program itself sets.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    program = [sys.executable, str(ROOT / "scripts" / "compile_for.py"), *words]
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = [Row(**row) for row in json.loads((tmp_path / "found.json").read_text())["rows"]]
    assert done.stdout == to_markdown(rows)
    assert [(row.preset, row.target) for row in rows] == [
        (preset, target) for preset in ("smoke", "tutorial") for target in ("v5e-8", "h100-1")
    ]
    for row in rows:
        assert row.fits
        assert row.donated
        assert row.unknown_loops == 0
        assert row.all_reduces == (1 if row.target == "v5e-8" else 0)
        assert 0 < row.megabytes < 200
        if TARGETS[row.target].platform == "cuda":
            assert row.launches <= 60
            # Two layers, 28 time steps, forward and backward, three kernels or more each.
            assert row.kernels > 2 * 28 * 2 * 3
        else:
            assert row.launches is row.kernels is None
