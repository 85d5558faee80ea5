"""What latentmill finds in this package by its entry points: see pyproject.toml, and CONTRIBUTING.md of latentmill."""
