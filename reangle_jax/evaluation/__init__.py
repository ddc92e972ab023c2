"""Many outputs of many methods, measured alike: a manifest in, a table out.

``python -m reangle_jax.evaluation MANIFEST.json --out DIR``; `manifest` says what is compared, `parts` what is
measured.
"""
