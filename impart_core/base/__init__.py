"""What every room may use: errors, settings, canonical JSON, numbers, files, retries. Knows nothing of models."""
