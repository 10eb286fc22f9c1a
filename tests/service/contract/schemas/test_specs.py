"""Epsilons stay exact, specs have one normal form, settings come from the environment."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.contract.near_names import did_you_mean
from service.contract.schemas.epsilons import epsilon_in_words, epsilon_text, parse_epsilon
from service.contract.schemas.parsing import parse_model
from service.contract.schemas.problems import InvalidInput, Problem
from service.contract.schemas.property_spec import PropertySpec
from service.contract.schemas.submissions import Spec
from service.contract.schemas.training_plans import TrainSpec, certification_spec
from service.contract.settings import Settings
from service.reports.signing import sign


@given(st.fractions(min_value=Fraction(1, 10**12), max_value=10**25, max_denominator=10**12))
def test_a_fraction_survives_its_text(epsilon: Fraction) -> None:
    assert parse_epsilon(epsilon_text(epsilon)) == epsilon


@given(st.floats(min_value=5e-324, allow_nan=False, allow_infinity=False))
def test_a_number_means_the_decimal_it_is_written_as(value: float) -> None:
    epsilon = parse_epsilon(value)
    assert epsilon == Fraction(repr(value))
    assert float(epsilon) == value
    assert parse_epsilon(epsilon_text(epsilon)) == epsilon


@given(st.text(max_size=30))
def test_any_text_is_a_positive_finite_fraction_or_refused(text: str) -> None:
    try:
        epsilon = parse_epsilon(text)
    except ValueError:
        return
    assert epsilon > 0
    assert math.isfinite(float(epsilon))
    assert parse_epsilon(epsilon_text(epsilon)) == epsilon


@given(st.integers(1, 10**40 - 1), st.integers(0, 40), st.integers(-999, 999))
def test_the_normal_form_of_any_decimal_is_read_again(
    digits: int, places: int, exponent: int
) -> None:
    text = f"{digits}.{'0' * (places - 1)}7e{exponent}" if places else f"{digits}e{exponent}"
    try:
        epsilon = parse_epsilon(text)
    except ValueError:
        return
    assert parse_epsilon(epsilon_text(epsilon)) == epsilon


@pytest.mark.parametrize(
    ("given_as", "text"),
    [("36/255", "12/85"), (0.1, "1/10"), ("0.50", "1/2"), (3, "3"), ("1e20", str(10**20))],
)
def test_the_normal_form_of_an_epsilon(given_as: object, text: str) -> None:
    assert epsilon_text(parse_epsilon(given_as)) == text


@pytest.mark.parametrize(
    ("given_as", "words"),
    [("36/255", "12/85"), (0.1, "1/10"), (1e300, "1e+300"), (1e-300, "1e-300"), ("8", "8")],
)
def test_no_sentence_prints_hundreds_of_digits(given_as: object, words: str) -> None:
    assert epsilon_in_words(parse_epsilon(given_as)) == words


def test_a_spec_is_stored_with_every_default_and_read_back_equal() -> None:
    spec = Spec.model_validate({"norm": "l2", "epsilons": ["36/255", 0.5]})
    assert spec.normal() == {
        "norm": "l2",
        "epsilons": ["12/85", "1/2"],
        "method": "auto",
        "effort": "standard",
        "soundness": "sound",
        "output": None,
        "binary": False,
        "deterministic": True,
        "samples": 1000,
        "indices": None,
        "normalization": None,
        "input_range": [0.0, 1.0],
        "clip": True,
        "architecture": None,
        "summation": "as-uploaded",
        "radius": True,
        "attack": {"steps": 40, "restarts": 1, "audit": 0.05, "seed": 0},
        "time_budget_s": None,
        "sample_time_s": None,
        "criterion": None,
        "seed": 0,
    }
    assert Spec.model_validate(spec.normal()) == spec
    bare = Spec.model_validate({**spec.normal(), "attack": None, "samples": "all"})
    assert (bare.attack, bare.samples) == (None, "all")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"summation": "partial_sums"}, "did you mean 'partial-sums'?"),
        ({"summation": "as uploaded"}, "did you mean 'as-uploaded'?"),
        ({"effort": "standart"}, "did you mean 'standard'?"),
        ({"summation": 3}, "'as-uploaded' or 'partial-sums'"),
    ],
)
def test_a_slip_in_one_of_a_few_words_names_the_word(change: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_model(
            Spec, {"norm": "l2", "epsilons": [1], **change}, field="spec", code="invalid_spec"
        )
    assert told in str(caught.value)
    assert caught.value.field == f"spec.{next(iter(change))}"


def test_a_property_has_no_summation() -> None:
    with pytest.raises(InvalidInput, match="summation has no meaning for a property"):
        parse_model(PropertySpec, {"summation": "partial-sums"}, field="spec", code="invalid_spec")


def test_a_training_does_not_rewrite_what_it_made() -> None:
    """Its report, and those of sweeps and cascades, are about the model that was trained."""
    asked = {"method": "emma", "dataset": "digits", "epsilon": 1}
    for summation, refused in (("as-uploaded", False), ("partial-sums", True)):
        spec = TrainSpec.model_validate({**asked, "certify": {"summation": summation}})
        if not refused:
            assert certification_spec(spec) is not None
            continue
        with pytest.raises(ValidationError, match="POST /certify") as caught:
            certification_spec(spec)
        assert [row["type"] for row in caught.value.errors()] == ["unsupported_summation"]


@pytest.mark.parametrize(
    ("change", "place", "told"),
    [
        ({"kernal": 3}, "layers.0.kernal", "did you mean 'kernel'?"),
        ({"kind": "Conv2D_"}, "layers.0.kind", "did you mean 'conv2d'?"),
        ({"kind": "dropout"}, "layers.0.kind", "leave it out"),
        ({"kind": "Dropout2d"}, "layers.0.kind", "nothing once a network is trained"),
        ({"kind": "log_softmax"}, "layers.0.kind", "leave it out"),
        ({"kind": "identity"}, "layers.0.kind", "leave it out"),
        ({"kernel": None}, "layers.0.kernel", "needs"),
        ({"out": "4"}, "layers.0.out", "an integer, not '4'"),
        ({"stride": [[1]]}, "layers.0.stride", "not list"),
        ({"name": "input"}, "layers.0.name", "taken"),
        ({"out": 2**53}, "layers.0.out", "integers are below 2^53"),
        ({"stride": [1, -(2**53)]}, "layers.0.stride.1", "integers are below 2^53"),
        ({"from": "stem"}, "layers.0.from", "not the name of an earlier layer"),
    ],
)
def test_a_slip_in_a_layer_list_is_refused_at_its_place(
    change: dict[str, object], place: str, told: str
) -> None:
    layer = {"kind": "conv2d", "out": 4, "kernel": 3} | change
    architecture = {"input": [1, 8, 8], "layers": [layer, {"kind": "flatten"}]}
    for field, kind, rest in (
        ("spec", Spec, {"norm": "l2", "epsilons": [1]}),
        ("body", TrainSpec, {"method": "emma", "dataset": "digits", "epsilon": 1}),
    ):
        with pytest.raises(InvalidInput) as caught:
            parse_model(kind, {**rest, "architecture": architecture}, field=field, code="x")
        problem = caught.value
        prefix = "spec." if field == "spec" else ""
        assert problem.code == "invalid_architecture"
        assert problem.field == f"{prefix}architecture.{place}"
        assert told in problem.detail


def test_a_misspelled_size_of_a_family_is_refused() -> None:
    wish = {"norm": "l2", "epsilons": [1], "architecture": {"name": "liresnet", "dept": 3}}
    with pytest.raises(InvalidInput, match="did you mean 'depth'") as caught:
        parse_model(Spec, wish, field="spec", code="invalid_spec")
    assert caught.value.field == "spec.architecture.dept"


def test_ranges_of_inputs() -> None:
    wish = {"norm": "linf", "epsilons": [1]}
    assert Spec.model_validate({**wish, "input_range": None}).clip is False
    per_feature = Spec.model_validate({**wish, "input_range": [[0, -1], 100]})
    assert per_feature.input_range == [[0, -1], 100]
    assert Spec.model_validate(per_feature.normal()) == per_feature
    for change, field in (
        ({"input_range": None, "clip": True}, "spec.clip"),
        ({"input_range": [1, 1]}, "spec.input_range"),
        ({"input_range": [0, 1e39]}, "spec.input_range"),
        ({"input_range": [[0, 0], [1, 2, 3]]}, "spec.input_range"),
        ({"input_range": [[0, 3], 2]}, "spec.input_range"),
    ):
        with pytest.raises(InvalidInput) as caught:
            parse_model(Spec, {**wish, **change}, field="spec", code="invalid_spec")
        assert (caught.value.code, caught.value.field) == ("invalid_input_range", field)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTSERVE_DATA_SOURCES", "/a:/b")
    monkeypatch.setenv("CERTSERVE_LEASE_TTL_S", "5")
    monkeypatch.setenv("CERTSERVE_DATA_DIR", "relative")
    settings = Settings()
    assert settings.data_sources == (Path("/a"), Path("/b"))
    assert settings.lease_ttl_s == 5
    assert settings.data_dir.is_absolute()
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("member", "value", "place", "told"),
    [
        ("samples", "x", "spec.samples", "a valid integer; or Input should be 'all'"),
        ("attack", 5, "spec.attack", "Input should be a valid dictionary"),
        ("attack", {"steps": "x"}, "spec.attack.steps", "a valid integer"),
        ("Samples-2", 1, "spec.Samples-2", "not permitted"),
        ("int", 1, "spec.int", "not permitted"),
        ("epsilons", ["x", 0.1], "spec.epsilons.0", "36/255"),
    ],
)
def test_an_error_names_the_field_as_its_writer_knows_it(
    member: str, value: object, place: str, told: str
) -> None:
    with pytest.raises(Problem) as caught:
        parse_model(
            Spec,
            {"norm": "l2", "epsilons": [0.1], member: value},
            field="spec",
            code="invalid_spec",
        )
    assert caught.value.field == place
    assert caught.value.detail.startswith(f"{place}: ")
    assert told in caught.value.detail
    assert "instance of" not in caught.value.detail
    assert caught.value.hint is None


@pytest.mark.parametrize(
    ("member", "value", "told"),
    [
        ("epsilon", 0.1, "'epsilons'"),
        ("sample_time", 1, "'sample_time_s'"),
        ("Norm", "l2", "'norm'"),
        ("attack", {"step": 3}, "'steps'"),
        ("criterion", {"epsilon": 0.1, "certified_acuracy": 1}, "'certified_accuracy'"),
        ("method", "alpha_crown", "'alpha-crown'"),
        ("method", "Zonotop", "'zonotope'"),
        ("architecture", "cifar6c2f", "'cifar-6c2f'"),
        ("architecture", {"name": "lip-convnet"}, "'lipconvnet'"),
    ],
)
def test_a_slip_of_the_keyboard_is_told_what_was_meant(
    member: str, value: object, told: str
) -> None:
    with pytest.raises(Problem) as caught:
        parse_model(
            Spec, {"norm": "l2", "epsilons": [0.1], member: value}, field="spec", code="invalid"
        )
    # A missing field comes first; the unknown one in its place is then in the hint.
    assert f"(did you mean {told}?)" in f"{caught.value.detail} {caught.value.hint}"


@given(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=5))
def test_what_is_meant_is_a_known_name_or_nothing(given_name: str, known: list[str]) -> None:
    said = did_you_mean(given_name, known)
    assert not said or said in [f" (did you mean {name!r}?)" for name in known]
    assert all(did_you_mean(name.upper(), [name]) for name in ("crown-ibp", "digits"))


@pytest.mark.parametrize(
    ("criterion", "code"),
    [
        ({"epsilon": 0.2, "certified_accuracy": 0.5}, "invalid_criterion"),
        ({"epsilon": 0.1, "certified_accuracy": 1.5}, "invalid_spec"),
        ({"epsilon": 0.1}, "missing_field"),
        ({"epsilon": -1, "certified_accuracy": 0.5}, "invalid_epsilon"),
    ],
)
def test_a_criterion_is_about_an_epsilon_that_is_asked(criterion: object, code: str) -> None:
    spec = {"norm": "l2", "epsilons": ["36/255", 0.1], "criterion": criterion}
    with pytest.raises(Problem) as caught:
        parse_model(Spec, spec, field="spec", code="invalid_spec")
    assert caught.value.code == code
    exact = {**spec, "criterion": {"epsilon": "12/85", "certified_accuracy": 1}}
    assert Spec.model_validate(Spec.model_validate(exact).normal()) == Spec.model_validate(exact)


def test_every_integer_of_a_spec_is_one_that_all_json_readers_take() -> None:
    """A report repeats its spec, and none with a larger integer can be signed."""
    asked = {"norm": "l2", "epsilons": [1]}
    for change in ({"samples": 2**53}, {"architecture": {"name": "liresnet", "depth": 2**53}}):
        with pytest.raises(InvalidInput):
            parse_model(Spec, {**asked, **change}, field="spec", code="invalid_spec")
    largest = Spec.model_validate({**asked, "samples": 2**53 - 1, "seed": 2**53 - 1}).normal()
    sign({"schema": "certserve/report/1", "spec": largest}, Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"normalization": {"mean": 0.1307, "std": [0.3081]}}, "[0.1307]"),
        ({"epsilons": "2/255"}, '["2/255"]'),
        ({"input_range": "null"}, "or null without quotation marks"),
        ({"input_range": 255}, "such as [0, 255]"),
        ({"samples": "100"}, "100 without quotation marks"),
        ({"clip": "false"}, "false without quotation marks"),
        ({"seed": "-1e3"}, "-1e3 without quotation marks"),
    ],
)
def test_a_value_that_is_nearly_right_is_shown_as_it_is_written(
    wrong: dict[str, object], words: str
) -> None:
    with pytest.raises(Problem) as caught:
        parse_model(
            Spec, {"norm": "l2", "epsilons": [1], **wrong}, field="spec", code="invalid_spec"
        )
    assert words in caught.value.detail
