"""Networks as mixed-integer linear programs: their encoding, and what a solver makes of it."""
