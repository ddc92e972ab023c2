import jax

from reangle_jax.randomness import named_key


def test_keys_depend_on_seed_and_name_alone():
    def draw(seed, *names):
        return float(jax.random.uniform(named_key(seed, *names)))

    assert draw(0, "generate", "left:10") == draw(0, "generate", "left:10")
    values = {draw(0), draw(1), draw(0, "a"), draw(0, "b"), draw(0, "a", "b"), draw(0, "b", "a")}
    assert len(values) == 6
