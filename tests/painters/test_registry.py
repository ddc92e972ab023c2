from reangle_jax.config import get_tiny, parse
from reangle_jax.painters import registry


def test_names_and_parts_are_known_before_anything_is_loaded():
    assert tuple(registry.ENTRIES) == ("flux.1-dev", "flux.1-fill-dev", "tiny")
    assert "controlnet" in registry.ENTRIES["flux.1-dev"].parts
    assert "controlnet" not in registry.ENTRIES["flux.1-fill-dev"].parts  # it takes the mask itself
    assert [entry.edits for entry in registry.ENTRIES.values()] == [True, False, True]  # Fill only fills
    assert all(entry.multiple % 8 == 0 for entry in registry.ENTRIES.values())


def test_a_model_of_ones_own(monkeypatch):
    monkeypatch.setitem(registry.ENTRIES, "own", registry.Entry(4, {}, "collections:OrderedDict"))
    assert registry.ENTRIES["own"].load().__name__ == "OrderedDict"
    config = get_tiny()
    config.video, config.first_frames.model = "clip.mp4", "own"
    assert parse(config).first_frames.model == "own"
