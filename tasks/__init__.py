"""The engine's stages as Prefect tasks: what binds them, runs them, and reports them there."""
