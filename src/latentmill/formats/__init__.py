"""Formats: what a trainer reads (layouts: names and bytes) and where it lies (containers: folder or zip)."""
