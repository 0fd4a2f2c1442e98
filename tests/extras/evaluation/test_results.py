"""Results are shown with their intervals."""

from extras.evaluation.results import format_results


def test_table_has_a_line_for_each_metric():
    lines = format_results("The model", 12345, {"loss": 0.25, "accuracy": 0.9}, {"accuracy": (0.88, 0.92)}).splitlines()
    assert lines[0] == "The model, n = 12,345:"
    assert lines[1].split() == ["loss", "0.2500"]
    assert lines[2].split() == ["accuracy", "0.9000", "95", "%", "interval", "0.8800", "to", "0.9200"]
