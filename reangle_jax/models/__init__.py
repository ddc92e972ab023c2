"""One room per published architecture: a config and its modules.

A network is made by ``Network(config, *, execution=None, rngs)``: of its sizes, how it is computed
(`reangle_jax.nn.execution`), and the source of its initial values. By default a diffusion transformer is computed as
this device does it best (`Execution.chosen`), any other with plain attention in what is stored, and keeps all
activations for the backward pass.
"""
