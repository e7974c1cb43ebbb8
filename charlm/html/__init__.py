"""Self-contained HTML pages: no network, no external script, light and dark. Knows nothing of models."""
