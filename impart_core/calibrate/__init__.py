"""What a model makes of text, layer by layer: calibration for methods that fit matrices to their inputs."""
