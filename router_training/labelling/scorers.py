"""Scorers that ask nobody: an answer against its sample, to a mark or to none.

A mark is a score in [0, 1], or None with the reason why this scorer cannot tell: no reference, no
letter, no number, an error in a user's function. None is never 0. Reasons hold nothing of the
answer, so that they can be counted and logged.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from router_runtime.errors import ConfigError, MissingDependencyError
from router_training.labelling.answer_letters import find_letter, reference_letter
from router_training.labelling.answer_numbers import answer_number, reference_number, same
from router_training.labelling.answer_words import accepted, f1, rouge_l, words
from router_training.labelling.config import (
    ChoiceConfig,
    ExactConfig,
    NumericConfig,
    OverlapConfig,
    PythonConfig,
    RegexConfig,
    ScorerConfig,
    ScoringConfig,
)
from router_training.labelling.samples import LabelSample

PATTERN_TIMEOUT_S = 2.0
"""How long one pattern may search one answer; patterns can take exponential time."""

_REFERENCE = "{reference}"


class Mark(NamedTuple):
    """A score in [0, 1], or None and the reason."""

    score: float | None
    reason: str | None = None


Scorer: TypeAlias = Callable[[LabelSample, str], Mark]

NO_REFERENCE = Mark(None, "the sample has no reference")


def build_scorers(config: ScoringConfig) -> Mapping[str, Scorer]:
    """Return the configured scorers by name.

    Raises
    ------
    ConfigError
        Naming the scorer: a pattern is none, a function cannot be imported.
    """
    return {name: _built(name, entry) for name, entry in config.scorers.items()}


def _built(name: str, config: ScorerConfig) -> Scorer:
    if isinstance(config, ExactConfig):
        return lambda sample, text: _exact(sample, text, config)
    if isinstance(config, ChoiceConfig):
        return lambda sample, text: _choice(sample, text, config)
    if isinstance(config, NumericConfig):
        return lambda sample, text: _numeric(sample, text, config)
    if isinstance(config, OverlapConfig):
        return lambda sample, text: _overlap(sample, text, config)
    if isinstance(config, RegexConfig):
        return _regex(name, config)
    return _python(name, config)


def _exact(sample: LabelSample, text: str, config: ExactConfig) -> Mark:
    reference = sample.sample.reference
    if reference is None:
        return NO_REFERENCE
    known = accepted(reference)
    if not config.normalise:
        return Mark(float(text.strip() in [answer.strip() for answer in known]))
    said = words(text)
    # what normalises to nothing ("!?") is compared as it is
    return Mark(float(any(said == words(k) if said else text.strip() == k.strip() for k in known)))


def _choice(sample: LabelSample, text: str, config: ChoiceConfig) -> Mark:
    reference = sample.sample.reference
    if reference is None:
        return NO_REFERENCE
    choices = sample.choices
    if len(choices) > len(config.letters):
        return Mark(None, f"there are more choices than the {len(config.letters)} letters")
    letters = config.letters[: len(choices)] if choices else config.letters
    right = reference_letter(reference, letters=letters, choices=choices)
    if right is None:
        return Mark(None, "the reference is no choice")
    said = find_letter(text, letters=letters, choices=choices)
    return Mark(None, "no single choice is named") if said is None else Mark(float(said == right))


def _numeric(sample: LabelSample, text: str, config: NumericConfig) -> Mark:
    reference = sample.sample.reference
    if reference is None:
        return NO_REFERENCE
    right = [number for k in accepted(reference) if (number := reference_number(k)) is not None]
    if not right:
        return Mark(None, "the reference is not one number")
    said = answer_number(text)
    if said is None:
        return Mark(None, "no number is named")
    found = [same(said, n, relative=config.relative, absolute=config.absolute) for n in right]
    if any(found):
        return Mark(1.0)
    return Mark(None, "the number can be read in two ways") if None in found else Mark(0.0)


def _overlap(sample: LabelSample, text: str, config: OverlapConfig) -> Mark:
    reference = sample.sample.reference
    if reference is None:
        return NO_REFERENCE
    measure = f1 if config.measure == "f1" else rouge_l
    wanted = [found for answer in accepted(reference) if (found := words(answer))]
    if not wanted:
        return Mark(None, "the reference has no words")
    said = words(text)
    return Mark(max(measure(said, known) for known in wanted))


def _regex(name: str, config: RegexConfig) -> Scorer:
    try:
        import regex  # type: ignore[import-untyped] # the standard library's re has no timeout
    except ImportError:
        raise MissingDependencyError("regex", "label") from None
    flags = regex.VERSION0 | (regex.IGNORECASE if config.ignore_case else 0)

    def compiled(reference: str) -> Any:
        return regex.compile(config.pattern.replace(_REFERENCE, regex.escape(reference)), flags)

    try:
        fixed = compiled("reference")
    except regex.error as error:
        raise ConfigError(
            f"Scorer '{name}': its pattern is no regular expression: {error}."
        ) from error
    asks = _REFERENCE in config.pattern

    def score(sample: LabelSample, text: str) -> Mark:
        reference = sample.sample.reference
        if asks and reference is None:
            return NO_REFERENCE
        try:
            patterns = [compiled(k) for k in accepted(reference or "")] if asks else [fixed]
            found = any(p.search(text, timeout=PATTERN_TIMEOUT_S) for p in patterns)
        except regex.error:
            return Mark(None, "the pattern is none with this reference in it")
        except TimeoutError:
            return Mark(None, f"the pattern took longer than {PATTERN_TIMEOUT_S:g} s")
        return Mark(float(found))

    return score


def _python(name: str, config: PythonConfig) -> Scorer:
    function = _imported(name, config.function)

    def score(sample: LabelSample, text: str) -> Mark:
        try:
            value = function(sample, text)
        except Exception as error:
            return Mark(None, f"{config.function} raised {type(error).__name__}")
        if value is None:
            return Mark(None, f"{config.function} returned None")
        try:
            # a text is refused although float() would read some: "1" may be a mark of 1 to 10
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isnan(number) or not 0 <= number <= 1:
            return Mark(None, f"{config.function} returned no score in [0, 1]")
        return Mark(number)

    return score


def _imported(name: str, path: str) -> Callable[[LabelSample, str], Any]:
    module, _, attribute = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ConfigError(
            f"Scorer '{name}': '{path}' cannot be imported ({type(error).__name__}). Its folder "
            "must be on PYTHONPATH, and the module must import without errors."
        ) from error
    if not callable(function):
        raise ConfigError(f"Scorer '{name}': '{path}' is no function.")
    return function  # type: ignore[no-any-return]
