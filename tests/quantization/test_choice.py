import math

from vitdeploy.quantization.choice import RangeChoice, choose

MINMAX, MSE, PERCENTILE = RangeChoice("minmax"), RangeChoice("mse"), RangeChoice("percentile", 99.9)


def chosen(scores, alphas=()):
    asked = []

    def score(choice):
        asked.append(str(choice))
        return scores[str(choice)] if not choice.mul else scores.get(str(choice), -math.inf)

    best, trials = choose([MINMAX, MSE, PERCENTILE], alphas, score)
    assert [str(trial.choice) for trial in trials] == asked
    return str(best)


def test_the_best_score_wins():
    assert chosen({"minmax": 30.0, "mse": 31.0, "percentile 99.9": 33.0}) == "percentile 99.9"


def test_a_gain_within_the_noise_does_not_buy_a_more_elaborate_choice():
    assert chosen({"minmax": 30.0, "mse": 30.2, "percentile 99.9": 30.1}) == "minmax"


def test_scaling_is_tried_on_the_best_method_only():
    scores = {
        "minmax": 30.0,
        "mse": 32.0,
        "percentile 99.9": 20.0,
        "mse, channels scaled with alpha 0.5": 35.0,
        "mse, channels scaled with alpha 0.75": 34.0,
    }
    assert chosen(scores, (0.5, 0.75)) == "mse, channels scaled with alpha 0.5"


def test_scaling_that_hurts_is_not_taken():
    scores = {"minmax": 30.0, "mse": 30.0, "percentile 99.9": 30.0, "minmax, channels scaled with alpha 0.5": 12.0}
    assert chosen(scores, (0.5,)) == "minmax"


def test_a_mul_must_gain_more_because_it_costs_time():
    scores = {"minmax": 2.0, "mse": 2.0, "percentile 99.9": 2.0, "minmax, channels scaled with alpha 0.5": 30.0}
    with_mul = "minmax, channels scaled with alpha 0.5 and Muls"
    assert chosen({**scores, with_mul: 30.9}, (0.5,)) == "minmax, channels scaled with alpha 0.5"
    assert chosen({**scores, with_mul: 31.1}, (0.5,)) == with_mul


def test_a_mul_is_tried_even_where_free_scaling_gains_nothing():
    scores = {"minmax": 2.0, "mse": 2.0, "percentile 99.9": 2.0, "minmax, channels scaled with alpha 0.5": 2.0}
    with_mul = "minmax, channels scaled with alpha 0.5 and Muls"
    assert chosen({**scores, with_mul: 35.0}, (0.5,)) == with_mul


def test_nan_never_wins_and_never_stays():
    assert chosen({"minmax": math.nan, "mse": 10.0, "percentile 99.9": math.nan}) == "mse"
