"""Parts of the benchmark of bulk embedding."""
