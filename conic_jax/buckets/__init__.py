"""Runs in a bucket of Google Cloud Storage or S3."""
