import pytest

from reangle_jax.painters import registry


def test_names_and_parts_are_known_before_anything_is_loaded():
    assert registry.names() == ("flux.1-dev", "flux.1-fill-dev", "tiny")
    assert "controlnet" in registry.entry("flux.1-dev").parts
    assert "controlnet" not in registry.entry("flux.1-fill-dev").parts  # it takes the mask itself
    assert [registry.entry(name).edits for name in registry.names()] == [True, False, True]  # Fill only fills
    assert all(registry.entry(name).multiple % 8 == 0 for name in registry.names())


def test_a_model_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    registry.register("own", registry.Entry(4, {}, "collections:OrderedDict"))
    assert registry.names()[-1] == "own"
    assert registry.entry("own").load().__name__ == "OrderedDict"
    with pytest.raises(KeyError):
        registry.entry("other")
