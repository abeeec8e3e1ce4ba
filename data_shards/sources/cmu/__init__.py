"""CMU-MOSI and CMU-MOSEI: prepared files, and the sequences of the authors' kit."""
