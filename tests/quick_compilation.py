"""Flags with which XLA compiles quickly: the tests run most programs once, and compiling was most of their time."""

from importlib import metadata

# Without LLVM's optimisation.
FLAGS = "--xla_backend_optimization_level=0"
# XLA's newer way to emit fused loops, by MLIR, takes longer than all else of compiling. JAX 0.11 has no other.
USERS_LOOPS: dict[str, bool] = {}  # options of a program in which what is computed twice must be rounded alike
if metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
    USERS_LOOPS["xla_cpu_use_fusion_emitters"] = True
