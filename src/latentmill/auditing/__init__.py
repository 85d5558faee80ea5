"""Looking through a source before anything is made of it: what a run would reject, and what one may not want in it."""
