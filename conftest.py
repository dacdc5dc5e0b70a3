"""How tests and doctests run: on CPU, in float64, with nothing broadcast by accident."""

import itertools
import os

import jax
import pytest

# Tests compile thousands of small programs and run each for a moment: the plainest code generation
# makes that three times faster and leaves the programs what they are.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# The environment is for the processes that tests start, the config for a jax imported before us.
jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# jax_numpy_dtype_promotion stays "standard": under "strict" optax.adam itself raises.

# A test compiles what it tests, here and in the processes that it starts, whatever the environment
# says of a persistent cache.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture(autouse=True)
def _doctests_print_what_a_reader_sees(request):
    """Doctests run with JAX's defaults, so that the dtypes they print are the reader's."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


_finished = itertools.count(1)


@pytest.fixture(autouse=True)
def _forget_programs_now_and_then():
    """Drop compiled programs before they use up the memory maps of a process.

    On CPU a test's programs hold some 400 maps, Linux grants 65,530, and XLA crashes without them.
    """
    yield
    if next(_finished) % 75 == 0:
        jax.clear_caches()
