"""Stages as Prefect tasks: take references and a config, call impart_core, publish, return a reference."""
