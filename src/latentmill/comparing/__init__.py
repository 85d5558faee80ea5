"""Comparing VAEs on one's own photos: what each gives back, what its latents are like, what they cost."""
