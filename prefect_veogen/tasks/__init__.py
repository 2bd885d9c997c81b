"""The Prefect tasks: the only folder that knows Prefect."""
