"""The engine's stages as Prefect tasks, one short file each, and what runs and reports them there."""
