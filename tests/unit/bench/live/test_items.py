"""What counting costs: the items that are measured are what they are said to be."""

from bench.live.items import RULES, memory, records, us_a_click
from stream.live.counts import ItemCounts


def test_items_have_as_many_successors_as_the_figure_says() -> None:
    made = dict(records(12, 3))
    assert len(made) == 12
    counts = [ItemCounts.decode(RULES, raw) for raw in made.values()]
    assert {len(item.successors.weights) for item in counts} == {3}
    assert memory(12, 3)["bytes_an_item"] == len(made[b"item-000000"])


def test_every_event_of_the_measured_clicks_is_counted() -> None:
    assert us_a_click(20, 300) > 0  # asserts in it count the events
