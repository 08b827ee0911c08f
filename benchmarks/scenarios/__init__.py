"""One module per scenario: each has ``run(setting)``, which returns its figures."""
