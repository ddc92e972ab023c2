"""Mends that several errors share."""

from reangle_jax import errors


def test_a_wider_type_is_no_mend_of_the_widest():
    assert errors.wider("bfloat16") == "set config.execution.dtype=float32 (it is bfloat16), "
    assert errors.wider("float32") == ""
