"""The kinds of output of a recipe: settings in, a checked Job out."""
