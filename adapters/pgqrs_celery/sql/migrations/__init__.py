"""The steps of the schema that belong to Celery's results, forward only."""
