"""Objects under a URL: a folder, S3, or any place that fsspec knows; failures as sentences."""
