"""Audits as tests ask for them: with every setting beside the others, to be varied one at a time."""

from dataclasses import fields

import pytest

import holdfast

_PROOFS = {"certify": "method", "sigma": "sigma"} | {
    f"certify_{name}": name for name in ("seconds", "arithmetic", "budgets", "checks")
}


def audit(model, data, threat, **options):
    """An audit, with the settings of :class:`holdfast.Model` and :class:`holdfast.Certification` among its own.

    Of classes, the shares that are wrong are the counts.
    """
    reading = {field.name: options.pop(field.name) for field in fields(holdfast.Model)[1:] if field.name in options}
    proofs = {name: options.pop(option) for option, name in _PROOFS.items() if option in options}
    result = holdfast.audit(
        holdfast.Model(model, **reading), data, threat, certify=holdfast.Certification(**proofs), **options
    )
    assert result.clean_error == pytest.approx(1 - result.clean_accuracy)
    assert result.robust_error == pytest.approx(1 - result.robust_accuracy)
    return result
