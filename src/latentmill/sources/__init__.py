"""Sources: where images come from. A source lists SampleRefs without reading pixels, and reads one image's bytes."""
