"""Trained models as directories that the service can load; the schema is `service.contract`."""
