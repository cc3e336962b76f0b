import numpy as np

from tests.unit.train.building import batch_of, sessions_of
from train.baselines import build_baselines, count_transitions, item_support
from train.evaluate import Predictor

# Support: item 0 four clicks, 1 three, 2 two, 3 one, 4 none.
TRAINING = sessions_of([[0, 1, 0, 1], [0, 2], [2, 0, 1, 3]])
BASELINES = build_baselines(TRAINING, n_items=5)


def best_first(predictor: Predictor, session: list[int]) -> list[list[int]]:
    """The list after each click of a session; its last click only stands for a next one."""
    batch = batch_of([[*session, 0]])
    return [np.argsort(-scores[0], kind="stable").tolist() for scores in predictor.predict(batch)]


def test_support_counts_clicks_and_knows_items_without_any() -> None:
    assert item_support(TRAINING, 5).tolist() == [4, 3, 2, 1, 0]


def test_pop_lists_the_most_clicked_items_to_everybody() -> None:
    assert best_first(BASELINES["pop"], [3, 4]) == [[0, 1, 2, 3, 4]] * 2


def test_s_pop_lists_the_sessions_own_items_by_their_clicks_then_the_most_clicked() -> None:
    assert best_first(BASELINES["s-pop"], [3, 2, 3]) == [
        [3, 0, 1, 2, 4],
        [2, 3, 0, 1, 4],  # one click each: the more popular one first
        [3, 2, 0, 1, 4],
    ]


def test_markov_lists_what_followed_the_last_click_then_the_most_clicked() -> None:
    # After 0 came 1 three times and 2 once; after 1 came 0 and 3 once each; after 3 nothing.
    assert best_first(BASELINES["markov"], [0, 1, 3]) == [
        [1, 2, 0, 3, 4],
        [0, 3, 1, 2, 4],
        [0, 1, 2, 3, 4],
    ]


def test_transitions_do_not_cross_from_one_session_into_the_next() -> None:
    chain = count_transitions(TRAINING, n_items=5)
    pairs = {
        (item, int(chain.follower[k])): int(chain.count[k])
        for item in range(5)
        for k in range(chain.start[item], chain.start[item + 1])
    }
    assert pairs == {(0, 1): 3, (1, 0): 1, (0, 2): 1, (2, 0): 1, (1, 3): 1}


def test_every_row_of_a_batch_gets_the_list_of_its_own_prefix() -> None:
    sessions = [[0, 1, 3], [2, 0], [3, 3]]
    batch = batch_of(sessions)
    for predictor in BASELINES.values():
        together = list(predictor.predict(batch))
        assert [len(scores) for scores in together] == [3, 1]
        for row in range(3):
            alone = batch_of([sessions[row]])
            for step, scores in enumerate(predictor.predict(alone)):
                assert (together[step][row] == scores[0]).all()
