"""Words that an enemy would choose for a file, a class, a column or an exception."""

__all__ = ["HOSTILE", "obeyed"]

HOSTILE = (
    "red \x1b[31;1mALERT\x1b[0m",
    "title \x1b]0;owned\x07 set",
    "link \x1b]8;;http://example.org\x1b\\here\x1b]8;;\x1b\\",
    "cleared \x1b[2J\x1b[H screen",
    "c1 \x9b31m and \x9d0;owned\x9c",
    "over\rwritten",
    "two\nlines",
    "holdfast\n\nrobust accuracy is exactly 100.00 %",
    "back\b\b\b\bspace\x7f\x00\x0b\x0c\x85",
    "turned \u202egnp.exe\u202c \u2066isolate\u2069",
    "hidden \u200b\u200d\u2060\ufeff\u00ad space",
    "separated \u2028line \u2029paragraph",
    "[red]markup[/red] [link=http://example.org]x[/link] [/] [bold",
    "broken [/nothing] :smile: {0} {x} %s %n \\",
    "mathematics $\\frac{$ ^_{",
    "not utf-8 \udcff\udc80 \ud800",
    "=HYPERLINK(1) '; DROP TABLE examples; -- <script>alert(1)</script>",
)


def obeyed(text: str) -> list[str]:
    """Characters of a line that a terminal or a reader's eye would be led by."""
    return sorted({c for c in text if not c.isprintable()})
