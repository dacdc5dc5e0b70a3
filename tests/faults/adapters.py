"""Of networks of other libraries; most need that library."""

from tests.faults.fault import Fault

FAULTS = (
    Fault(
        "the slope of a tanh is left out",
        "_equations.pull",
        "d * slope(h)",
        "d",
        ("test_an_update_is_pytorch_s[tanh-marks0]",),
        needs="torch",
    ),
    Fault(
        "a row of padding is trained",
        "_embed",
        "jax.lax.stop_gradient(table[padding])",
        "table[padding]",
        ("test_an_update_is_pytorch_s[lstm-marks0]",),
        needs="torch",
    ),
    Fault(
        "gates in Keras' order",
        "_reset_first",
        "jnp.concatenate([r, z, h], axis=-1)",
        "columns",
        ("test_outputs_are_those_of_the_model[gru-True]",),
        needs="keras",
    ),
    Fault(
        "a masked step gives another output",
        "assemble.unroll",
        "jnp.swapaxes(after[-1], 0, 1)",
        "x",
        ("test_a_masked_embedding_holds_carry_and_output_as_in_keras[lstm-True]",),
        needs="keras",
    ),
    Fault(
        "an encoder of Linen always trains",
        "_apply",
        "switches(module, rng is not None)",
        "switches(module, True)",
        ("test_random_numbers_of_linen_are_of_the_training_alone[cell1-None]",),
    ),
    Fault(
        "a learnt state of Haiku is lost",
        "from_haiku.initialize_carry",
        "start.apply(params.get('core', {}), None, rows)",
        "jax.tree.map(jnp.zeros_like, start.apply(params.get('core', {}), None, rows))",
        ("test_values_gradient_and_update_are_haiku_s[learnt-marks0]",),
        needs="haiku",
    ),
    Fault(
        "the bias inside of Equinox' reset gate is that of all gates",
        "_weights",
        "jnp.zeros(2 * h_bias.size, h_bias.dtype)",
        "jnp.ones(2 * h_bias.size, h_bias.dtype)",
        ("test_values_gradient_and_update_are_equinox_s[gru-marks0]",),
        needs="equinox",
    ),
)
