"""A model compressed, quantised, rebuilt and measured: stages, and the loops over an executor that runs them."""
