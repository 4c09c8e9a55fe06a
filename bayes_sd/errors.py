"""The errors a user of bayes_sd is meant to read."""


class InputError(ValueError):
    """Input that cannot be used.

    The message is one sentence: what is wrong, where (file, field, row), what is allowed.

    Examples
    --------
    >>> raise InputError("a.json: duration must be a positive finite number, got 0")
    Traceback (most recent call last):
    bayes_sd.errors.InputError: a.json: duration must be a positive finite number, got 0
    """


class EvidenceError(Exception):
    """A question that the data or the fit cannot answer.

    The message is one sentence: which question, what is missing, what would answer it.

    Examples
    --------
    >>> raise EvidenceError("no plain run of 'llama-8b': P(SD beats plain) needs one")
    Traceback (most recent call last):
    bayes_sd.errors.EvidenceError: no plain run of 'llama-8b': P(SD beats plain) needs one
    """


class PriorWarning(UserWarning):
    """A fit has too few verifiers, drafters or servers to learn how they differ."""
