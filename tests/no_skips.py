"""With ``EVERY_TEST=1``, as .ci/run sets it, a test that is skipped on Python 3.11 fails and says why.

All that tests need is installed there, so that a skip is a hole. What a system forbids (mounting a disk, say) may still
be skipped, and its reason begins with "this system". On other interpreters the originals in PyTorch are not installed.
"""

import os
import sys

import pytest

ON = os.environ.get("EVERY_TEST", "0") not in ("", "0") and sys.version_info[:2] == (3, 11)


def _refused(report):
    if ON and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else "skipped"
        if not reason.startswith("this system"):
            report.outcome, report.longrepr = "failed", f"EVERY_TEST forbids to skip: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _refused((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _refused((yield))
