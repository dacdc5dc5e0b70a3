"""Of evaluation and diagnostics."""

from tests.faults.fault import Fault

FAULTS = (
    Fault(
        "evaluation starts from a carry of ones",
        "_sums",
        "_evaluate(functions, (loss, *metrics.values()), params, carry, batch)",
        "_evaluate(functions, (loss, *metrics.values()), params, jax.tree.map(lambda c: "
        "jnp.ones(c.shape, c.dtype), forms.carry) if carry is None else carry, batch)",
        ("test_evaluate_and_predict_are_the_oracles_forward_numbers[mw]",),
    ),
    Fault(
        "whole sequences continue the batch before",
        "_sums",
        """if batch.reset is None:
    carry = None
else:
    advice = 'evaluate other streams by themselves'
    carry = carry_to_continue(carry, batch, forms.carry, advice)""",
        """if batch.reset is not None:
    advice = 'evaluate other streams by themselves'
    carry = carry_to_continue(carry, batch, forms.carry, advice)""",
        ("test_evaluate_and_predict_are_the_oracles_forward_numbers[mw]",),
    ),
    Fault(
        "variance over the norm instead of its square",
        "_bias",
        "size ** 2",
        "size",
        ("test_gradients_found_elsewhere_are_compared_by_group",),
    ),
    Fault(
        "batches weigh alike in an evaluation",
        "combine",
        "np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)",
        "np.full_like(weights, 1 / len(weights))",
        ("test_evaluate_and_predict_are_the_oracles_forward_numbers[mw]",),
    ),
    Fault(
        "credit at lag 0 is of the carry",
        "one_lag",
        "lag == 0",
        "lag != 0",
        ("test_credit_by_lag_equals_the_oracle[rnn--xent]",),
    ),
)
