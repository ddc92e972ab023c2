"""The reader of the attention kernel's schedule."""

import pytest

from benchmarks.splash_schedule import cycles

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
    with pytest.raises(ValueError, match="has 4 parts where five are known"):
        cycles(SCHEDULE.replace(" 0x145 PF", " 0x145   "), 4)
