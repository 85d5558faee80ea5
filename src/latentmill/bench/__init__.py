"""`latentmill bench`: what each part of the work takes on this machine, what limits it, and which settings fit."""
