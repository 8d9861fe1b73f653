"""One experiment a file: ``run`` measures and ``draw`` draws."""
