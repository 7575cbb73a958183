"""How much a run may ask of models: a number of answers, or a cost at given prices.

BudgetReached   the error of a run that may not spend more
cost_of         what a transcript's answers cost
bound           which bound of a transcript is reached
reached         the error that says so
"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuronym.models.transcripts import Transcript


class BudgetReached(RuntimeError):
    """A run may not spend more; what was answered is kept."""


def cost_of(transcript: Transcript) -> float:
    """Cost of the answers asked for, at the prices of a million tokens read and written."""
    prompt, answered = transcript.prices
    return (transcript.prompt_tokens * prompt + transcript.answer_tokens * answered) / 1e6


def bound(transcript: Transcript) -> str:
    """Name of the bound that is reached; "" when there is none."""
    if transcript.budget is not None and transcript.paid >= transcript.budget:
        return "budget"
    if transcript.most_cost is not None and (transcript.uncounted or cost_of(transcript) >= transcript.most_cost):
        return "most_cost"
    return ""


def reached(transcript: Transcript, left: int) -> Exception:
    """The error that a bound is reached while `left` answers are missing."""
    kept = f"{left} answers are missing, the {transcript.asked} that came are kept"
    if bound(transcript) == "most_cost" and transcript.uncounted:
        return ValueError(f"most_cost needs an answer's tokens, and {transcript.uncounted} came without; {kept}: bound "
                          "the calls by budget instead, and run again")
    name = bound(transcript)
    cost = "" if transcript.prices is None else f", which cost {cost_of(transcript):.4g}"
    return BudgetReached(f"{name}={getattr(transcript, name)} is reached by {transcript.paid} answers of "
                         f"{transcript.prompt_tokens} + {transcript.answer_tokens} tokens{cost}; {kept}: raise {name} "
                         "and run again")
