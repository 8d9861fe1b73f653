"""Audits as tests ask for them: with every setting beside the others, to be varied one at a time."""

from dataclasses import fields

import holdfast

_PROOFS = {"certify": "method", "sigma": "sigma"} | {
    f"certify_{name}": name for name in ("seconds", "arithmetic", "budgets", "checks")
}


def audit(model, data, threat, **options):
    """An audit, with the settings of :class:`holdfast.Model` and :class:`holdfast.Certification` among its own."""
    reading = {field.name: options.pop(field.name) for field in fields(holdfast.Model)[1:] if field.name in options}
    proofs = {name: options.pop(option) for option, name in _PROOFS.items() if option in options}
    return holdfast.audit(
        holdfast.Model(model, **reading), data, threat, certify=holdfast.Certification(**proofs), **options
    )
