"""The line that a training shows: its rate leaves compilation out, what is left does not."""

from experiments.progress import Bar


def make(total):
    bar = Bar(total, "word", hidden=False)
    bar.ncols, bar.dynamic_ncols = 80, None
    return bar


def test_a_length_that_compiles_is_named_and_left_out_of_the_rate():
    with make(1000) as bar:
        bar.compiling(1, 2)
        assert str(bar).startswith("compiling (length 1 of 2)")
        assert "left" not in str(bar)  # nothing is known yet
        bar.trained(100, 50.0, "epoch 1/2")
        assert bar.seconds_left() is None
        bar.trained(300, 2.0, "epoch 1/2")  # 100 steps a second, and 50 s for the other length
        assert bar.seconds_left() == 700 / 100 + 50
        assert "100 words/s" in str(bar)
        assert "00:57 left" in str(bar)
        bar.compiling(2, 2)
        bar.trained(400, 30.0, "epoch 1/2")
        assert bar.seconds_left() == 600 / 100
        bar.trained(1000, 6.0, "epoch 2/2")
        bar.set_postfix_str("loss 0.300, valid 88.00%")
        assert str(bar).startswith("epoch 2/2 100%|████████████| ")
        assert str(bar).rstrip().endswith("loss 0.300, valid 88.00%, 100 words/s")


def test_the_bar_keeps_its_width_on_a_narrow_terminal():
    with make(10) as bar:
        bar.trained(5, 1.0, "epoch 1/1")
        bar.set_postfix_str("x" * 100)
        assert "|██████      |" in str(bar)
        assert len(str(bar)) <= 80
