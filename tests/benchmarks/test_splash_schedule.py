"""The reader of the attention kernel's schedule, and the blocks that it is asked for."""

import argparse
import sys

import pytest

from benchmarks import splash_schedule, targets
from benchmarks.splash_schedule import blocks, cycles
from reangle_jax import commands
from reangle_jax.errors import InputError
from reangle_jax.nn import splash

# Begun by 0x10 instructions, a block is 0x100, its end 0x20, and 0x8 lead on to the next.
SCHEDULE = """
   0x2   :  { %28 = vsyncpa [#allocation8], 0 }
   0xd LB: > { %73455 = sst [smem:[#allocation13_spill]] %s42523_s1 }
  0x1d PF: > { %s929_s2 = sld [smem:[#allocation4 + %s42]] }
  0x50   : > { %v52790_v24 = vld [vmem:[#allocation10] sm:$0xff] }
 0x11d PF: > { %p35648_p12 = scmp.ne.s32.totalorder %s4 }
 0x13d PF: > { %s83161_s13 = sadd.s32 4294967295, %s425 }
 0x145 PF: > { %s34_s17 = sadd.s32 1, %s42531_s17 }
"""


def test_what_runs_at_a_rows_ends_counts_once_a_row():
    assert cycles(SCHEDULE, 1) == 0x10 + 0x100 + 0x20 + 0x8
    assert cycles(SCHEDULE, 4) == 0x100 + 0x8 + (0x10 + 0x20) / 4


def test_a_kernel_of_other_parts_is_not_guessed_at():
    with pytest.raises(InputError, match="has 4 parts where five are known"):
        cycles(SCHEDULE.replace(" 0x145 PF", " 0x145   "), 4)


@pytest.mark.parametrize("text", ["512,3584", "a,b,c", "0,128,128", "-512,3584,512", "512,3584,100", ""])
def test_blocks_that_no_kernel_has_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="three multiples of 128"):
        blocks(text)


def test_blocks_that_no_chip_holds_are_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="use smaller blocks"):
        blocks("17920,17920,17920")


def test_the_blocks_counted_are_those_that_divide_the_tokens():
    length = splash.padded_length(splash_schedule.TOKENS)
    assert splash.fitting(blocks("1024,4096,1024"), length, length) == (896, 3584, 896)
    assert splash.fitting(splash.Blocks(999936, 999936, 999936), length, length) == (length,) * 3


def test_without_the_compiler_the_mend_is_said(monkeypatch, capsys):
    def missing(**options):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology")

    monkeypatch.setattr(targets.topologies, "get_topology_desc", missing)
    monkeypatch.setattr(sys, "argv", ["splash_schedule"])
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    assert commands.answer(lambda stop: splash_schedule.main()) == 2
    assert capsys.readouterr().err == 'error: --target=v5e:1x1 needs the TPU compiler: pip install "libtpu==0.0.42.*"\n'


@pytest.mark.parametrize("name", ["bogus", "a100:1", "v5e", "v5e:8", "h100"])
def test_a_target_of_no_kind_is_not_sent_to_a_compiler(name):
    with pytest.raises(InputError, match=f"--target={name} is none of v5e:1x1, "):
        targets.find(name)
