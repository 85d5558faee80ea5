"""Encoders: a batch of pixels in, one array a sample out."""
