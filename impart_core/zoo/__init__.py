"""The zoo file: which models a team keeps, how each is compressed, what it may lose; and the record of each run."""
