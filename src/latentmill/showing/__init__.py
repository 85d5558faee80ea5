"""How datasets, samples, plans and results look in a notebook, and as pictures outside of one."""
