"""Counts, lists and tables on the console."""

from guided_diffusion.runtime.console import console, counted, listed, text_table


def test_counts_and_lists():
    assert counted(1, "case") == "1 case" and counted(0, "case") == "0 cases"
    assert listed(["a", "b"]) == "a, b" and listed("abcdef", most=4) == "a, b, c, d and 2 more"


def test_lines_do_not_act_on_the_terminal(capsys):
    console().info("name\tdice\na\x1b[2J\t1")
    assert capsys.readouterr().out == "name\tdice\na\\x1b[2J\t1\n"


def test_a_table_of_text():
    text = text_table(["", "mean", "n"], [["dice", "1234.5678", 4], ["a longer name"], ["ece", "0.1"]])
    assert text.splitlines() == [
        "                    mean  n",
        "dice           1234.5678  4",
        "a longer name",
        "ece                  0.1",
    ]
