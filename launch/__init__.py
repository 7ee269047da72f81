"""Start a training on this machine or on a Slurm cluster, keep it going, and look after its runs. Imports no torch."""
