"""What CI relies on: nothing is skipped unseen."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import no_skips

ROOT = Path(__file__).parents[1]
CASES = {
    "import pytest\ndef test(): pytest.skip('no such package')": "EVERY_TEST forbids to skip: no such package",
    "import pytest\n@pytest.mark.skip(reason='later')\ndef test(): pass": "EVERY_TEST forbids to skip: later",
    "import pytest\nx = pytest.importorskip('no_such_module')": "EVERY_TEST forbids to skip: could not import",
    "import pytest\ndef test(): pytest.skip('this system cannot')": None,
    "import pytest\n@pytest.mark.xfail\ndef test(): raise ValueError": None,
}


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the rule is for 3.11 alone")
@pytest.mark.parametrize("every", ["0", "1"])
@pytest.mark.parametrize(("source", "says"), CASES.items())
def test_a_skip_is_a_failure_where_all_is_installed(tmp_path, source, says, every):
    (tmp_path / "test_it.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.no_skips", "-p", "no:cacheprovider", "--rootdir", "."]
    done = subprocess.run(
        [*command, str(tmp_path / "test_it.py")],
        env={**os.environ, "EVERY_TEST": every, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    refused = says is not None and every == "1"
    assert (done.returncode not in (0, 5)) == refused, done.stdout
    if refused:
        assert says in done.stdout


def test_the_rule_is_part_of_the_suite(request):
    manager = request.config.pluginmanager
    assert any(
        getattr(plugin, "pytest_runtest_makereport", None) is no_skips.pytest_runtest_makereport
        for plugin in manager.get_plugins()
    )


def test_ci_sets_it():
    assert re.search(r"^EVERY_TEST=1 make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
