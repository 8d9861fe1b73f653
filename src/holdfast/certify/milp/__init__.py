"""Networks and tree ensembles as mixed-integer linear programs: their encodings, and what a solver makes of them."""
