import math

from vitdeploy.quantization.choice import RangeChoice, choose

MINMAX, MSE, PERCENTILE = RangeChoice("minmax"), RangeChoice("mse"), RangeChoice("percentile", 99.9)


def chosen(scores, alphas=()):
    asked = []

    def score(choice):
        asked.append(str(choice))
        return scores[str(choice)]

    best, trials = choose([MINMAX, MSE, PERCENTILE], alphas, score)
    assert [str(trial.choice) for trial in trials] == asked
    return str(best)


def test_the_best_score_wins():
    assert chosen({"minmax": 30.0, "mse": 31.0, "percentile 99.9": 33.0}) == "percentile 99.9"


def test_a_gain_within_the_noise_does_not_buy_a_more_elaborate_choice():
    assert chosen({"minmax": 30.0, "mse": 30.2, "percentile 99.9": 30.1}) == "minmax"


def test_equalisation_is_tried_on_the_best_method_only():
    scores = {
        "minmax": 30.0,
        "mse": 32.0,
        "percentile 99.9": 20.0,
        "mse, equalised with alpha 0.5": 35.0,
        "mse, equalised with alpha 0.75": 34.0,
    }
    assert chosen(scores, (0.5, 0.75)) == "mse, equalised with alpha 0.5"


def test_equalisation_that_hurts_is_not_taken():
    scores = {"minmax": 30.0, "mse": 30.0, "percentile 99.9": 30.0, "minmax, equalised with alpha 0.5": 12.0}
    assert chosen(scores, (0.5,)) == "minmax"


def test_nan_never_wins_and_never_stays():
    assert chosen({"minmax": math.nan, "mse": 10.0, "percentile 99.9": math.nan}) == "mse"
