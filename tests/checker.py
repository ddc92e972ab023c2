"""What checks the annotations of the packages while the tests run (see conftest.py)."""

import beartype

# As type checkers have it, an int is a float too.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
